"""From settings to objects, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.training.settings import TranscoderConfig
from clt_lightning.transcoder import CrossLayerTranscoder


def describe_transcoder(clt: CrossLayerTranscoder) -> TranscoderConfig:
    """The settings that make a transcoder like this one, untrained."""
    return TranscoderConfig(
        *(clt.n_features, clt.activation, clt.topology, clt.skip, clt.backend),
        *(clt.sites, clt.normalization),
    )


def transcoder_form(config: TranscoderConfig, clip: Backbone) -> dict[str, Any]:
    """What makes the transcoder, without its seed."""
    kept = ("n_features", "activation", "topology", "skip", "backend", "normalize")
    sites = config.sites.of(config.topology)
    layers = sites.resolve(clip.n_layers, clip.name)
    if sites.layers is not None and not sites.once:
        sites = dataclasses.replace(sites, layers=list(layers))  # as the backbone numbers them
    widths = [clip.site_width(str(site)) for site in (sites.read, sites.write)]
    weighted = config.activation.cls_weight != 1
    if weighted and (sites.read == "final" or not clip.has_cls):
        what = "the site final has no tokens" if clip.has_cls else f"the backbone {clip.name!r} has no [CLS] token"
        raise UserError(f"model.transcoder.activation: {what}: set cls_weight to 1")
    return {
        "n_positions": clip.n_positions if weighted else None,
        "n_layers": len(layers),
        "d_model": widths[0],
        "d_out": widths[1],
        "sites": sites,
        **{name: getattr(config, name) for name in kept},
    }

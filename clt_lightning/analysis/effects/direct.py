"""Direct effects: what a feature at [CLS] adds to each class's logit through the read-out alone."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.last_residual import LastResidual
from clt_lightning.analysis.tower import Observation
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder


@torch.no_grad()
def read_out(clip: FrozenCLIP, head: Tensor) -> Tensor:
    """`(classes, d_model)` float64: how each class's logit reads the last [CLS] residual, up to the image's own scale.

    The last LayerNorm takes the mean off, which is linear and taken off the direction here; its scale, and the division
    by the embedding's norm, are the image's own (`read_out_scale`).

    Args:
        clip: a backbone that reads its embedding from [CLS].
        head: `(embed_dim, classes)`.
    """
    readout = clip.readout()
    assert readout is not None
    return readout.directions(head.to(clip.device)).T


@torch.no_grad()
def read_out_scale(clip: FrozenCLIP, seen: Observation) -> tuple[Tensor, Tensor]:
    """What `read_out` leaves out, of each image: `(images,)` float64 each.

    Returns:
        the last LayerNorm's scale times the factor, and the factor: `logit_scale` over the embedding's norm.
    """
    return LastResidual.of(clip, seen).scales()


@torch.no_grad()
def direct_effects(clt: CrossLayerTranscoder, layer: int, directions: Tensor) -> tuple[Tensor, Tensor]:
    """What code 1 of each feature of a layer at [CLS] adds to each class's logit, minus the mean over classes.

    Args:
        clt: the transcoder.
        layer: the features' layer.
        directions: `(classes, d_model)`: `read_out` times the mean of `read_out_scale`.

    Returns:
        `(F, classes)` through all layers that the feature writes to, and `(F, L)` the spread over classes (standard
        deviation) of what goes through each of them, 0 for layers that it does not write to.
    """
    centred = (directions - directions.mean(0)).to(clt.b_dec.dtype)
    everyone = torch.arange(clt.n_features, device=clt.b_dec.device)
    total = clt.b_dec.new_zeros(clt.n_features, len(directions))
    spread = clt.b_dec.new_zeros(clt.n_features, clt.n_layers)
    for target in range(layer, clt.n_layers):
        if clt.writes(layer, target):
            part = clt.rows(layer, everyone, target) @ centred.T
            total += part
            spread[:, target] = part.std(1, correction=0)
    return total, spread

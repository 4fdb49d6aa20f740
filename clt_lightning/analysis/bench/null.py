"""An untrained transcoder of the same form: what measures give without any training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.normalization import StatisticsAccumulator

#: Tokens that scales and means come from, and those that thresholds are set on
_TOKENS, _THRESHOLD_TOKENS = 16_384, 4_096
_BISECTIONS = 24
_CLOSE = 0.01


@torch.no_grad()
def untrained(
    backbone: Backbone, clt: CrossLayerTranscoder, batches: Iterable[Mapping[str, Any]], seed: int = 0
) -> CrossLayerTranscoder:
    """A transcoder of the same form with random features, as sparse as this one.

    Encoders, scales and means are those of a training's first step. Each decoder row is a random direction (of an
    autoencoder: its own encoder's) as long as the trained row in its place. Encoder biases are moved, all of a layer
    alike, until each layer has the trained one's L0.

    Args:
        backbone: the frozen backbone.
        clt: the trained transcoder, in evaluation mode.
        batches: training images.
        seed: of the random directions.

    Raises:
        UserError: no images.
    """
    arguments = clt.config() | {"activation": copy.deepcopy(clt.activation), "seed": seed}
    null = CrossLayerTranscoder(**arguments).to(clt.b_dec.device)
    sites = str(clt.sites.read), str(clt.sites.write)
    sums = StatisticsAccumulator(clt.n_layers, clt.d_model, clt.b_dec.device, clt.d_out)
    kept: list[Tensor] = []
    for batch in batches:
        acts = backbone.capture(batch["image"], check_fit(backbone, clt), sites=sites)
        x = null.standardised(acts.x)
        sums.update(x, x if acts.y is acts.x else acts.y)
        if sum(x.shape[1] for x in kept) < _THRESHOLD_TOKENS:
            kept.append(acts.x)
        if int(sums.n) >= _TOKENS:
            break
    if not kept:
        raise UserError("an untrained transcoder takes its scales from training images, and there are none")
    null.normalize(sums.result())
    generator = torch.Generator().manual_seed(seed + 1)
    for layer, decoders in enumerate(null.W_dec):
        trained = clt.W_dec[layer]
        if clt.topology == "sae":
            directions = null.W_enc[layer].detach()[:, None]
        else:
            directions = torch.randn(trained.shape, generator=generator).to(trained)
        decoders.copy_(F.normalize(directions, dim=-1) * trained.norm(dim=-1, keepdim=True))
    null.train()
    for x in kept:  # an activation that sets thresholds from training batches does so
        null(x)
    null.eval()
    x = torch.cat(kept, 1)
    for layer in range(clt.n_layers):
        _match_l0(null, x[layer], layer, _l0(clt, x[layer], layer))
    return null


def _l0(clt: CrossLayerTranscoder, x: Tensor, layer: int) -> float:
    return float(clt.encode_layer(x, layer).l0().double().mean())


def _match_l0(null: CrossLayerTranscoder, x: Tensor, layer: int, wanted: float) -> None:
    """Move a layer's biases by one number, until its L0 is the wanted one (or as near as the activation lets it)."""
    own = null.b_enc[layer].clone()
    spread = float((null.standardised(x) * null.x_scale[layer]).norm(dim=1).max()) + float(own.abs().max()) + 1
    low, high = -2 * spread, 2 * spread
    best, shift = abs(_l0(null, x, layer) - wanted), 0.0
    for _ in range(_BISECTIONS):
        if best <= _CLOSE * wanted:
            break
        middle = (low + high) / 2
        null.b_enc[layer] = own + middle
        found = _l0(null, x, layer)
        if abs(found - wanted) < best:
            best, shift = abs(found - wanted), middle
        low, high = (low, middle) if found > wanted else (middle, high)
    null.b_enc[layer] = own + shift

"""Codes weighed by the norms of their decoders, and how penalties on them are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clt_lightning.transcoder.codes import Codes


def weighed_codes(codes: Codes, norms: Tensor) -> list[Tensor]:
    """`|z| * decoder norm` of every held code, one tensor a layer (pairs, or dense)."""
    out = []
    for layer, values in enumerate(codes.layer_values):
        if codes.is_dense(layer):
            out.append(values.abs() * norms[layer])
        else:
            out.append(values.abs() * norms[layer][codes.layer(layer)[0].features])
    return out


def mean_of_sums(layers: Sequence[Tensor], n_tokens: int) -> Tensor:
    """Mean over layers and tokens of what each layer holds, summed over features."""
    return torch.stack([v.sum() for v in layers]).mean() / max(n_tokens, 1)

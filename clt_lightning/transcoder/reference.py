"""The plain dense transcoder: what every fast path is held against.

One matrix product per source layer over packed decoders (never L x L), ordinary autograd, nothing clever.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clt_lightning.transcoder.activations import Activation, dense


def encode_dense(x: Tensor, W: Tensor, b: Tensor, activation: Activation, layer: int) -> Tensor:
    """Dense codes of one layer.

    Args:
        x: `(tokens, d_model)` encoder inputs.
        W: `(F, d_model)` encoder.
        b: `(F,)` bias.
        activation: the activation, built.
        layer: which layer this is.

    Returns:
        `(tokens, F)`.
    """
    return dense(activation, torch.nn.functional.linear(x, W, b), layer)


def decode_dense(
    codes: Sequence[Tensor], decoders: Sequence[Tensor], n_layers: int, low: torch.dtype | None = None
) -> Tensor:
    """Sum of all sources' terms in every target layer.

    Args:
        codes: one `(tokens, F)` per source layer.
        decoders: one `(F, targets, d_model)` per source layer; block t writes to layer `source + t`.
        n_layers: number of target layers.
        low: the type of the products; sources are added up in the codes' own. None: theirs.

    Returns:
        `(n_layers, tokens, d_model)`, without bias.
    """
    y: list[Tensor | None] = [None] * n_layers
    for source, (z, W) in enumerate(zip(codes, decoders)):
        blocks = W.transpose(0, 1)  # (targets, tokens, d_model) in one product
        terms = torch.matmul(z, blocks) if low is None else torch.matmul(z.to(low), blocks.to(low)).to(z.dtype)
        for t, term in enumerate(terms):
            before = y[source + t]
            y[source + t] = term if before is None else before + term
    return torch.stack([codes[0].new_zeros(codes[0].shape[0], decoders[0].shape[2]) if v is None else v for v in y])

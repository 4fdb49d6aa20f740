"""Sparse attention written out: what the fast form is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.transcoder.activations import dense
from clt_lightning.transcoder.attention.sparse import SparseAttention


def replace_dense(attention: SparseAttention, layer: int, x: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
    """One layer from its definition, in the units' own type; unit by unit, nothing packed.

    Args:
        attention: the units.
        layer: which.
        x: `(images, positions, d_model)`, its `attn_in`.
        pattern: `(images, n_heads, queries, keys)`.

    Returns:
        `(images, positions, d_model)` the rebuilt `attn_out`, and `(images, positions, F)` dense codes.
    """
    columns = []
    for unit in range(attention.n_features):
        head = unit * attention.n_heads // attention.n_features
        at_keys = (x * attention.x_scale[layer]) @ attention.W_enc[layer, unit]
        columns.append(torch.einsum("nqk,nk->nq", pattern[:, head], at_keys) + attention.b_enc[layer, unit])
    pre = torch.stack(columns, -1)
    codes = dense(attention.activation, pre.flatten(0, 1), layer).view(pre.shape)
    y = codes @ attention.W_dec[layer] + attention.b_dec[layer]
    return y * attention.y_scale[layer], codes

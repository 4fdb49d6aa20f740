"""torch's MultiheadAttention, taken apart: what its heads give, and a fast path with gradients of the inputs alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def fused_attention(blocks: Sequence[Any]) -> Iterator[None]:
    """While active, blocks attend by one fused kernel: the same numbers.

    `nn.MultiheadAttention` folds heads into images when gradients are wanted, and the kernel is passed by for plain
    products over unfolded attention weights. What is no plain self-attention is left as it is.

    Args:
        blocks: residual blocks with `attn`.
    """
    changed = []
    try:
        for block in blocks:
            attention = getattr(block, "attn", None)
            if type(attention) is nn.MultiheadAttention and is_plain(attention) and "forward" not in vars(attention):
                attention.forward = partial(_attend, attention)  # type: ignore[method-assign]
                changed.append(attention)
        yield
    finally:
        for attention in changed:
            del attention.forward


def is_plain(attention: nn.MultiheadAttention) -> bool:
    """Whether it mixes what one projection of its input gives, and nothing more."""
    return (
        attention._qkv_same_embed_dim
        and attention.bias_k is None
        and attention.bias_v is None
        and not attention.add_zero_attn
        and not (attention.training and attention.dropout)
    )


def _attend(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, None]:
    asked = {name: given for name, given in options.items() if given is not None and name != "need_weights"}
    if query is not key or key is not value or query.dim() != 3 or args or asked or options.get("need_weights", True):
        return nn.MultiheadAttention.forward(attention, query, key, value, *args, **options)  # type: ignore[return-value]
    return attention.out_proj(head_outputs(attention, query)), None


def head_outputs(attention: nn.MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What all heads give, one after the other, before the output projection.

    Args:
        attention: of queries, keys and values from one tensor.
        x: that tensor, `(images, positions, d)`, or `(positions, images, d)` where it is not `batch_first`.
        mask: as `nn.MultiheadAttention` takes it.

    Returns:
        of the same shape.
    """
    x = x if attention.batch_first else x.transpose(0, 1)
    images, positions, width = x.shape
    heads = attention.num_heads
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    # strided views: the kernel takes them, and their gradients are gathered by one copy
    q, k, v = (part.transpose(1, 2) for part in projected.view(images, positions, 3, heads, width // heads).unbind(2))
    mixed = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(images, positions, width)
    return mixed if attention.batch_first else mixed.transpose(0, 1)

"""One forward of an image tower from its parts, which keeps all that a linear model of it holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.parts import MlpParts, TowerParts
from clt_lightning.backbone.attention_parts import AttentionParts, Norm, attention_pattern, values


@dataclass(frozen=True)
class Held:
    """What is held of one block, for each image.

    Attributes:
        norm_1: `(images, positions, 1)` scale of the norm before the attention.
        pattern: `(images, heads, positions, positions)` attention from each query (first) to each key.
        inner: scale of the norm over the heads' outputs; None for none.
        post: scale of the norm on the attention's output; None for none.
        norm_2: scale of the norm before the MLP.
        gate: `(images, positions, hidden)` activation over its argument.
        mlp: scale of the norm inside the MLP; None for none.
    """

    norm_1: Tensor
    pattern: Tensor
    inner: Tensor | None
    post: Tensor | None
    norm_2: Tensor
    gate: Tensor
    mlp: Tensor | None


@dataclass(frozen=True)
class Seen:
    """One forward of the tower.

    Attributes:
        streams: at the entry of every block, and after the last: L + 1 of `(images, positions, d_model)`.
        middles: before every MLP's norm.
        x: the MLPs' inputs, after the norm; y: what the MLPs add.
        held: one per block.
        embedding: `(images, embed_dim)`, not normalised.
    """

    streams: list[Float[Tensor, "images positions d_model"]]
    middles: list[Float[Tensor, "images positions d_model"]]
    x: list[Float[Tensor, "images positions d_model"]]
    y: list[Float[Tensor, "images positions d_model"]]
    held: list[Held]
    embedding: Float[Tensor, "images embed_dim"]


@torch.no_grad()
def see(parts: TowerParts, stream: Float[Tensor, "images positions d_model"]) -> Seen:
    """Run the tower from the entry of block 0, and keep what the linear model holds.

    Args:
        parts: in the type of `stream` (`parts.cast`).
        stream: `(images, positions, d_model)`, from `parts.embed`.
    """
    streams, middles, xs, ys, held = [stream], [], [], [], []
    for block in parts.blocks:
        scale_1 = block.norm_1.scale(stream)
        normed = block.norm_1(stream, scale_1)
        pattern = attention_pattern(block.attention, normed)
        heads = mixed(block.attention, values(block.attention, normed), pattern)
        inner, post = _scale(block.attention.inner_norm, heads), None
        out = block.attention.out(normed_by(block.attention.inner_norm, heads, inner))
        if block.post_attention is not None:
            post = block.post_attention.scale(out)
            out = block.post_attention(out, post)
        middle = stream + scaled(out, block.scale_1)
        scale_2 = block.norm_2.scale(middle)
        x = block.norm_2(middle, scale_2)
        hidden = block.mlp.up(x)
        active = block.mlp.activation(hidden)
        mlp_scale = _scale(block.mlp.norm, active)
        y = scaled(block.mlp.down(normed_by(block.mlp.norm, active, mlp_scale)), block.scale_2)
        stream = middle + y
        streams.append(stream)
        middles.append(middle)
        xs.append(x)
        ys.append(y)
        held.append(Held(scale_1, pattern, inner, post, scale_2, gate(block.mlp, hidden, active), mlp_scale))
    return Seen(streams, middles, xs, ys, held, embed_stream(parts, stream))


def embed_stream(parts: TowerParts, stream: Tensor) -> Tensor:
    """`(images, embed_dim)` from the last stream, not normalised; gradients flow."""
    end = parts.read_out
    if end.other is not None:
        return end.other(stream)
    if end.norm is not None and not end.norm_after_pool:
        stream = end.norm(stream)
    pooled = torch.einsum("p,npd->nd", end.pool.to(stream), stream)
    if end.norm is not None and end.norm_after_pool:
        pooled = end.norm(pooled)
    return pooled if end.projection is None else end.projection(pooled)


def gate(mlp: MlpParts, hidden: Tensor, active: Tensor) -> Tensor:
    """The activation's output over its argument; at an argument of 0, the limit from beside it."""
    tiny = hidden.abs() < 1e-12
    beside = torch.full_like(hidden, 1e-6)
    return torch.where(tiny, mlp.activation(beside) / beside, active / torch.where(tiny, beside, hidden))


def mixed(part: AttentionParts, value: Tensor, pattern: Tensor) -> Tensor:
    """The heads' outputs side by side, `(images, positions, d_model)`."""
    found = pattern @ value
    if part.head_scale is not None:
        found = found * part.head_scale[:, None, None]
    return found.transpose(1, 2).flatten(2)


def _scale(norm: Norm | None, x: Tensor) -> Tensor | None:
    return None if norm is None else norm.scale(x)


def normed_by(norm: Norm | None, x: Tensor, scale: Tensor | None) -> Tensor:
    """The norm of x with a scale given; x itself without a norm."""
    return x if norm is None else norm(x, scale)


def scaled(x: Tensor, factors: Tensor | None) -> Tensor:
    """x times factors; x itself without any."""
    return x if factors is None else x * factors

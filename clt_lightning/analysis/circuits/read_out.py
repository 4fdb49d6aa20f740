"""A target as a row: how it reads the last stream, the last norm and the embedding's norm held, or to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.forward import Seen, embed_stream
from clt_lightning.analysis.circuits.parts import TowerParts
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError

Rows = Literal["frozen", "tangent"]


@dataclass(frozen=True)
class ReadOutRow:
    """An affine function of the last stream.

    Attributes:
        gradient: `(positions, d_model)`.
        constant: what is added; at the image, both together are the target's value.
        value: that value.
    """

    gradient: Tensor
    constant: float
    value: float


def read_out_row(parts: TowerParts, seen: Seen, target: Target, rows: Rows) -> ReadOutRow:
    """How a target reads the last stream of one image.

    Args:
        parts: the tower.
        seen: its forward of one image.
        target: what is read.
        rows: `frozen` holds the last norm's scale and the embedding's norm: terms add up to the value, and the constant
            is that of biases. `tangent` is the derivative at the image: what a small change does; its constant is what
            is left of the value.

    Raises:
        UserError: a read-out that is no sum (pooling by attention) with `frozen`, or a target of another size.
    """
    embedding = seen.embedding
    if target.direction.numel() != embedding.shape[1]:
        raise UserError(
            f"target {target.name!r} is of {target.direction.numel()} numbers, the embeddings of '{parts.name}' have "
            f"{embedding.shape[1]}"
        )
    value = float(target_values(parts, embedding, target)[0])
    stream = seen.streams[-1]
    if rows == "tangent":
        # Lightning evaluates in inference mode, whose tensors never enter a graph: copies do
        with torch.inference_mode(False), torch.enable_grad():
            leaf = stream.detach().clone().requires_grad_()
            total = target_values(parts, embed_stream(parts, leaf), target).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return ReadOutRow(gradient[0], value - float((gradient * stream).sum()), value)
    end = parts.read_out
    if end.other is not None:
        raise UserError(
            f"'{parts.name}' reads its embedding by more than a norm and a mean (attention pooling): no sum of terms "
            f"is its logit; rows='tangent' gives its derivative"
        )
    factor = target.scale / (float(embedding.norm()) if end.unit else 1.0)
    direction = target.direction.to(stream) * factor
    constant = 0.0
    pooled = direction
    if end.projection is not None:
        pooled = end.projection.adjoint(direction)
        if end.projection.bias is not None:
            constant += float(end.projection.bias @ direction)
    pool = end.pool.to(stream)
    if end.norm is None:
        return ReadOutRow(pool[:, None] * pooled, constant, value)
    if end.norm_after_pool:
        mean = torch.einsum("p,pd->d", pool, stream[0])
        gradient = pool[:, None] * end.norm.adjoint(pooled, end.norm.scale(mean))
    else:
        gradient = end.norm.adjoint(pool[:, None] * pooled, end.norm.scale(stream[0]))
        # padding positions of weight 0 may hold anything
        gradient = torch.where(pool[:, None] != 0, gradient, torch.zeros_like(gradient))
    if end.norm.bias is not None:
        constant += float(end.norm.bias @ pooled) * (1.0 if end.norm_after_pool else float(pool.sum()))
    return ReadOutRow(gradient, constant, value)


def target_values(parts: TowerParts, embeddings: Tensor, target: Target) -> Tensor:
    """`(images,)` values of a target from embeddings `(images, embed_dim)` that are not normalised; gradients flow."""
    if parts.read_out.unit:
        embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
    return target.scale * (embeddings @ target.direction.to(embeddings))

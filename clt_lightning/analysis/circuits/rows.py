"""Rows of a graph: what every source contributes to features' pre-activations and to targets, many in one backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.linear import Step
from clt_lightning.analysis.circuits.read_out import ReadOutRow
from clt_lightning.analysis.circuits.sources import Sources, encoder_rows


@dataclass(frozen=True)
class Reads:
    """Pre-activations to explain, as entries; several entries of a row are summed.

    Attributes:
        row: `(entries,)` int64.
        layer: `(entries,)` int64.
        position: `(entries,)` int64.
        feature: `(entries,)` int64.
        n_rows: how many rows.
    """

    row: Tensor
    layer: Tensor
    position: Tensor
    feature: Tensor
    n_rows: int


@torch.no_grad()
def feature_rows(sources: Sources, reads: Reads, passed: Callable[[Step], None] | None = None) -> Tensor:
    """`(rows, columns)`: every source's contribution; a row sums to its pre-activations.

    Args:
        sources: of the image.
        reads: what is explained.
        passed: told of every step of the backward, when it is done.
    """
    out = sources.like.new_zeros(reads.n_rows, sources.n_columns)
    if not len(reads.row):
        return out
    shape = sources.like.shape[1:]
    # deepest first: a row costs nothing in the layers above its own
    top = reads.layer.new_full((reads.n_rows,), -1).scatter_reduce_(0, reads.row, reads.layer, "amax")
    order = top.argsort(descending=True, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))

    def read(layer: int) -> Tensor | None:
        here = reads.layer == layer
        if not bool(here.any()):
            return None
        row, position, feature = place[reads.row[here]], reads.position[here], reads.feature[here]
        gradient = sources.like.new_zeros(int((top >= layer).sum()), *shape)
        gradient.index_put_((row, position), encoder_rows(sources.clt, layer, feature, gradient), accumulate=True)
        constants = sources.read_constants(layer, feature, position)
        out[:, sources.bias_column(layer, 2)].index_add_(0, row, constants)
        return sources.read_gradient(layer, gradient)

    for step in sources.tower.pull(int(reads.layer.max()), reads.n_rows, read):
        sources.add(step, out[: len(step.gradient)])
        if passed is not None:
            passed(step)
    out = out[place]
    if sources.tower.tangent:  # to first order rows do not add up by themselves: the rest is constant
        explained = out.new_zeros(reads.n_rows)
        for layer in reads.layer.unique().tolist():
            here = reads.layer == layer
            values = sources.pre_activations(layer, reads.feature[here], reads.position[here])
            explained.index_add_(0, reads.row[here], values)
            rows, column = reads.row[here].unique(), sources.bias_column(layer, 2)
            out[rows, column] = 0
            out[rows, column] = explained[rows] - out[rows].sum(1)
    return out


@torch.no_grad()
def target_rows(sources: Sources, read_outs: list[ReadOutRow]) -> Tensor:
    """`(targets, columns)`: every source's contribution to targets; a row sums to the target's value."""
    final = torch.stack([r.gradient for r in read_outs]).to(sources.like)
    out = sources.like.new_zeros(len(final), sources.n_columns)
    for step in sources.tower.pull(sources.n_layers - 1, len(final), final=final):
        sources.add(step, out)
    constants = [r.constant for r in read_outs]
    if sources.tower.tangent:
        constants = [r.value - float(row.sum()) for r, row in zip(read_outs, out)]
    out[:, sources.head_column] += torch.tensor(constants, dtype=out.dtype, device=out.device)
    return out

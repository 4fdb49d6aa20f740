"""Weighted edges of a graph, sparse; influence along them, and which ones to keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class Edges:
    """Edges sorted by target, then source.

    Attributes:
        source: `(edges,)` int64.
        target: `(edges,)` int64.
        weight: `(edges,)`: what the source contributes to the target, in the target's units.
        n: nodes.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    n: int

    def __len__(self) -> int:
        return len(self.source)

    @classmethod
    def from_rows(cls, rows: Tensor, targets: Tensor, n: int) -> Edges:
        """From dense rows `(some, n)`, whose targets are `targets (some,)` in rising order; zeros are no edges."""
        row, source = rows.nonzero(as_tuple=True)
        return cls(source, targets[row], rows[row, source], n)

    @classmethod
    def cat(cls, parts: list[Edges]) -> Edges:
        """Edges of several groups of targets, in rising order."""
        source = torch.cat([part.source for part in parts])
        target = torch.cat([part.target for part in parts])
        weight = torch.cat([part.weight for part in parts])
        return cls(source, target, weight, parts[0].n)

    def inputs(self) -> Tensor:
        """`(nodes,)` float64: the sum of the edges into every node."""
        return self._zeros().index_add_(0, self.target, self.weight.double())

    def keep(self, chosen: Tensor) -> Edges:
        """Some of the edges, between the same nodes."""
        return Edges(self.source[chosen], self.target[chosen], self.weight[chosen], self.n)

    def among(self, nodes: Tensor) -> Edges:
        """The edges between some of the nodes `(nodes,)` bool, numbered among themselves."""
        number = nodes.cumsum(0) - 1
        kept = nodes[self.source] & nodes[self.target]
        return Edges(number[self.source[kept]], number[self.target[kept]], self.weight[kept], int(nodes.sum()))

    def dense(self) -> Tensor:
        """`(nodes, nodes)`: row t, column s."""
        out = self.weight.new_zeros(self.n, self.n)
        out[self.target, self.source] = self.weight
        return out

    def of(self, target: int) -> Edges:
        """The edges into one node."""
        return self.keep(self.target == target)

    def times(self, columns: Tensor) -> Tensor:
        """The matrix of rows and columns (`dense`) times `(nodes, some)`, without making it."""
        offsets = torch.searchsorted(self.target, torch.arange(self.n + 1, device=self.target.device))
        matrix = torch.sparse_csr_tensor(
            offsets, self.source, self.weight.to(columns), (self.n, self.n), check_invariants=False
        )
        return matrix @ columns

    def shares(self, counted: Tensor) -> Tensor:
        """`(edges,)` float64: each edge's share of all absolute edges into its target; 0 for sources not counted.

        Args:
            counted: `(nodes,)` bool: sources that count.
        """
        size = torch.where(counted[self.source], self.weight.double().abs(), 0.0)
        total = self._zeros().index_add_(0, self.target, size)
        return size / total.clamp(min=1e-10)[self.target]

    def influence(self, shares: Tensor, weights: Tensor) -> Tensor:
        """`(nodes,)` float64: weights carried backwards along all paths, `w (A + A^2 + ...)` for shares A.

        Args:
            shares: from `shares`.
            weights: `(nodes,)` of the targets.
        """
        current, total = weights.double(), self._zeros()
        # edges go up the layers: paths end
        for _ in range(self.n + 1):
            current = self._zeros().index_add_(0, self.source, current[self.target] * shares)
            if not bool(current.any()):
                break
            total += current
        return total

    def _zeros(self) -> Tensor:
        return torch.zeros(self.n, dtype=torch.float64, device=self.source.device)


def cut(scores: Tensor, share: float) -> float:
    """The lowest score among the highest that together have a share of the sum."""
    ordered = scores.sort(descending=True).values
    if share >= 1 or not len(ordered):
        return float("-inf")
    cumulated = ordered.cumsum(0) / ordered.sum()
    return float(ordered[min(int(torch.searchsorted(cumulated, share)), len(ordered) - 1)])


def cumulated_share(scores: Tensor) -> Tensor:
    """For every score, the share of the sum that it and all higher ones have."""
    order = scores.argsort(descending=True, stable=True)
    out = torch.empty_like(scores)
    out[order] = scores[order].cumsum(0) / scores.sum().clamp(min=1e-300)
    return out


def check_share(name: str, value: float) -> float:
    """A share in [0, 1], or a UserError that names it."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name} must lie in 0..1, got {value!r}")
    return float(value)

"""Makes a graph's rows, in the order of influence where not all can be nodes, and the graph of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.edges import Edges
from clt_lightning.analysis.circuits.graph import Graph, with_influence
from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.layout import Layout
from clt_lightning.analysis.circuits.linear import Step
from clt_lightning.analysis.circuits.rows import Reads, feature_rows, target_rows
from clt_lightning.analysis.target import Target
from clt_lightning.core.progress import Progress

#: Batches of rows between two rankings of what is to come next
RANK_EVERY = 4
#: Rows that are read again, or made edges of, at once
BLOCK = 256


@dataclass
class Maker:
    """Computes rows, and decides which.

    Args:
        model: the image's.
        layout: of its rows.
        targets: what is explained.
        weights: `(targets,)`.
        batch: rows in one backward.
        max_nodes: features that are nodes at most.
    """

    model: ImageModel
    layout: Layout
    targets: tuple[Target, ...]
    weights: Tensor
    batch: int
    max_nodes: int

    @property
    def n_rows(self) -> int:
        """Features that become nodes."""
        return min(self.layout.n_features, self.max_nodes)

    @property
    def grows(self) -> bool:
        """Whether more features are active than may be nodes."""
        return self.layout.n_features > self.max_nodes

    @cached_property
    def held(self) -> Tensor:
        """`(targets, columns)`: rows that add up; where the read-out is no sum, or all moves, to first order."""
        other = self.model.parts.read_out.other is not None or self.model.tangent
        return self.tangent if other else self._target_rows("frozen")

    @cached_property
    def tangent(self) -> Tensor:
        """`(targets, columns)`: rows to first order."""
        return self._target_rows("tangent")

    def _target_rows(self, kind: Literal["frozen", "tangent"]) -> Tensor:
        return self.layout.reduce(
            target_rows(self.model.sources, [self.model.row(target, kind) for target in self.targets])
        )

    def rows(self, features: Tensor, passed: Callable[[Step], None] | None = None) -> Tensor:
        """`(features, columns)` of some feature nodes.

        Args:
            features: `(features,)` their columns.
            passed: told of every step of the backward, when it is done.
        """
        device = self.model.image.device
        row, layer, position, feature = (column.to(device) for column in self.layout.reads(features.cpu()))
        found = feature_rows(self.model.sources, Reads(row, layer, position, feature, len(features)), passed)
        return self.layout.reduce(found)

    def make(self, progress: bool) -> Graph:
        """The graph."""
        n = self.n_rows
        store = self.held.new_empty(n, self.layout.n_columns)
        order: list[Tensor] = []
        done = 0
        with Progress("attribution", n, "rows", show=progress) as bar:
            while done < n:
                for chosen in self.queue(order, store[:done]).split(self.batch):
                    store[done : done + len(chosen)] = self.rows(chosen)
                    done += len(chosen)
                    order.append(chosen)
                    bar.update(len(chosen))
        graph = self._graph(torch.cat(order) if order else torch.zeros(0, dtype=torch.int64), store)
        del store  # influence needs as much again
        return with_influence(graph)

    def queue(self, order: list[Tensor], store: Tensor) -> Tensor:
        """The features to compute next: all there are, layer by layer; or those with most influence so far.

        Args:
            order: the features whose rows are known.
            store: `(rows, columns)` these.
        """
        layout = self.layout
        if not self.grows:
            return torch.arange(layout.n_features)
        done = torch.cat(order) if order else torch.zeros(0, dtype=torch.int64)
        reach = partial_influence(store, done, self.held, self.weights, layout.counted, layout.layer)
        reach = reach[: layout.n_features].clone()
        reach[done] = -1.0
        return first_of(reach, min(self.n_rows - len(done), RANK_EVERY * self.batch))

    def edges(self, rows: Tensor, ends: Tensor, columns: Tensor, n: int) -> Edges:
        """The edges of rows among `n` nodes, into the nodes `ends`; `columns` says the node of each column."""
        rows = rows.cpu()
        return Edges.from_rows(rows.new_zeros(len(rows), n).index_add_(1, columns, rows), ends, n)

    def _graph(self, order: Tensor, store: Tensor) -> Graph:
        """Without influence."""
        layout = self.layout
        places = order.argsort()
        chosen = order[places]
        columns, n_rest = layout.columns(chosen)
        nodes = layout.nodes(chosen, n_rest, self.model, self.targets, self.held.sum(1))
        n = len(nodes)
        parts = []
        for start in range(0, len(chosen), BLOCK):
            block = places[start : start + BLOCK]
            parts.append(self.edges(store[block], torch.arange(start, start + len(block)), columns, n))
        parts.append(self.edges(self.held, torch.arange(n - len(self.targets), n), columns, n))
        tangent = self.tangent.cpu()
        return Graph(
            nodes,
            Edges.cat(parts),
            self.targets,
            self.weights,
            tangent.new_zeros(len(tangent), n).index_add_(1, columns, tangent),
            layout.summed,
            self.model.skip if self.model.clt.W_skip is not None else "through",
            {},
        )


def first_of(reach: Tensor, n: int) -> Tensor:
    """The n features of most influence `(features,)`, deep ones last: neighbours in depth share a backward."""
    return reach.cpu().argsort(descending=True, stable=True)[:n].sort().values


def partial_influence(
    store: Tensor, done: Tensor, held: Tensor, weights: Tensor, counted: Tensor, layer: Tensor
) -> Tensor:
    """`(columns,)` influence along the rows that are known so far.

    Args:
        store: `(rows, columns)` known rows of features.
        done: `(rows,)` their columns.
        held: `(targets, columns)` rows of the targets.
        weights: `(targets,)`.
        counted: `(columns,)` 1 for columns that take part in shares, 0 for biases.
        layer: `(columns,)` their layers.
    """
    weights = weights.to(store)

    def carried(rows: Tensor, amount: Tensor) -> Tensor:
        total = rows.new_zeros(rows.shape[1])
        for part, some in zip(rows.split(BLOCK), amount.split(BLOCK)):
            size = part.abs() * counted
            total += (some / size.sum(1).clamp(min=1e-10)) @ size
        return total

    total = carried(held, weights)
    layers = layer[done]
    # edges go up: what a layer's features have is complete once all layers above have handed theirs down
    for one in sorted(set(layers.tolist()), reverse=True):
        here = (layers == one).nonzero().flatten().to(store.device)
        for some in here.split(BLOCK):
            total += carried(store[some], total[done.to(store.device)[some]])
    return total

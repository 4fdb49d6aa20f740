"""Which node each source of an image belongs to: every feature at each position, or summed over positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.nodes import Nodes, make_nodes
from clt_lightning.analysis.circuits.sources import Sources
from clt_lightning.analysis.target import Target


@dataclass(frozen=True)
class Layout:
    """Columns of rows, as nodes to be.

    Attributes:
        summed: whether positions are summed.
        column_of: `(sources,)` the column of each source; None: its own.
        n_features: columns of features, the first ones.
        n_columns: all.
        layer: `(columns,)` int64; position, feature, activation, kind likewise.
        kinds: of the columns after the features, as (kind, how many), in order.
        counted: `(columns,)` 1, and 0 for biases.
        members: `(sources of features,)` permutation that sorts them by column, and `(n_features + 1,)` where each
            column's begin.
        table: layers, positions and features of the sources that are features.
    """

    summed: bool
    column_of: Tensor | None
    n_features: int
    n_columns: int
    layer: Tensor
    position: Tensor
    feature: Tensor
    activation: Tensor
    kinds: list[tuple[str, int]]
    counted: Tensor
    members: tuple[Tensor, Tensor]
    table: tuple[Tensor, Tensor, Tensor]

    def reduce(self, rows: Tensor) -> Tensor:
        """Rows over sources as rows over columns."""
        if self.column_of is None:
            return rows
        return rows.new_zeros(len(rows), self.n_columns).index_add_(1, self.column_of, rows)

    def reads(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Entries that a backward of some features reads: rows, layers, positions, features."""
        order, offsets = self.members
        counts = offsets[columns + 1] - offsets[columns]
        row = torch.repeat_interleave(torch.arange(len(columns)), counts)
        first = torch.repeat_interleave(offsets[columns] - (counts.cumsum(0) - counts), counts)
        entries = order[torch.arange(len(row)) + first]
        return row, *(column[entries] for column in self.table)  # type: ignore[return-value]

    def columns(self, chosen: Tensor) -> tuple[Tensor, int]:
        """Where each column goes in a graph whose features are some of all.

        Args:
            chosen: `(some,)` columns of features, in rising order.

        Returns:
            `(columns,)` nodes, and how many nodes stand for the features left out.
        """
        out = torch.empty(self.n_columns, dtype=torch.int64)
        left = torch.ones(self.n_features, dtype=torch.bool)
        left[chosen] = False
        layers, rest = self.layer[: self.n_features][left].unique(return_inverse=True)
        out[: self.n_features][left] = len(chosen) + rest
        out[chosen] = torch.arange(len(chosen))
        others = self.n_columns - self.n_features
        out[self.n_features :] = len(chosen) + len(layers) + torch.arange(others)
        return out, len(layers)

    def nodes(
        self, chosen: Tensor, n_rest: int, model: ImageModel, targets: tuple[Target, ...], values: Tensor
    ) -> Nodes:
        """The table of nodes of such a graph."""
        left = torch.ones(self.n_features, dtype=torch.bool)
        left[chosen] = False
        layers = self.layer[: self.n_features][left].unique()
        assert len(layers) == n_rest
        nowhere = torch.full_like(layers, -1)
        parts: list[tuple[str, Tensor, Tensor, Tensor, Tensor | None]] = [
            ("feature", self.layer[chosen], self.position[chosen], self.feature[chosen], self.activation[chosen]),
            ("rest", layers, nowhere, nowhere, None),
        ]
        at = self.n_features
        for kind, count in self.kinds:
            where = slice(at, at + count)
            parts.append((kind, self.layer[where], self.position[where], self.feature[where], None))
            at += count
        index = torch.arange(len(targets))
        parts.append(("target", index * 0 - 1, index * 0 - 1, index, values.cpu()))
        return make_nodes(parts, model.parts.position_names(), [target.name for target in targets])


def lay_out(sources: Sources, summed: bool) -> Layout:
    """The columns of an image's rows."""
    L, P = sources.n_layers, sources.n_positions
    table = [column.cpu() for column in sources.feature_table()]
    layers, positions, features, codes = table
    blocks = ["error", "skip"] if sources.skip_nodes else ["error"]
    n = sources.n_features
    order = torch.arange(n)
    if summed:
        key = layers * sources.clt.n_features + features
        unique, column = key.unique(return_inverse=True)
        order = column.argsort(stable=True)
        offsets = torch.cat(
            [torch.zeros(1, dtype=torch.int64), torch.bincount(column, minlength=len(unique)).cumsum(0)]
        )
        activation = torch.zeros(len(unique), dtype=codes.dtype).index_add_(0, column, codes)
        own = (unique // sources.clt.n_features, torch.full_like(unique, -1), unique % sources.clt.n_features)
    else:
        column, offsets, activation = order, torch.arange(n + 1), codes
        own = (layers, positions, features)
    prefix = _prefix(sources)
    inputs = torch.arange(P).clamp(max=prefix) if summed else torch.arange(P)
    n_inputs = int(inputs.max()) + 1
    parts = [own]
    kinds = []
    mapping = [column]
    at = len(own[0])
    for kind in blocks:
        if summed:
            parts.append((torch.arange(L), torch.full((L,), -1), torch.full((L,), -1)))
            mapping.append(at + torch.arange(L).repeat_interleave(P))
        else:
            grid = torch.arange(L * P)
            parts.append((grid // P, grid % P, torch.full((L * P,), -1)))
            mapping.append(at + grid)
        kinds.append((kind, len(parts[-1][0])))
        at += kinds[-1][1]
    where = torch.arange(n_inputs)
    if summed and n_inputs > prefix:
        where[prefix] = -1  # all patches together
    parts.append((torch.full((n_inputs,), -1), where, torch.full((n_inputs,), -1)))
    kinds.append(("input", n_inputs))
    mapping.append(at + inputs)
    at += n_inputs
    bias_layers = torch.cat([torch.arange(L).repeat(3), torch.tensor([-1])])
    which = torch.cat([torch.arange(3).repeat_interleave(L), torch.tensor([3])])
    parts.append((bias_layers, torch.full((3 * L + 1,), -1), which))
    kinds.append(("bias", 3 * L + 1))
    mapping.append(at + torch.arange(3 * L + 1))
    at += 3 * L + 1
    layer, position, feature = (torch.cat([part[i] for part in parts]) for i in range(3))
    counted = torch.ones(at)
    counted[at - (3 * L + 1) :] = 0.0
    device = sources.like.device
    return Layout(
        summed,
        torch.cat(mapping).to(device) if summed else None,
        len(own[0]),
        at,
        layer,
        position,
        feature,
        activation,
        kinds,
        counted.to(sources.like),
        (order, offsets),
        (layers, positions, features),
    )


def _prefix(sources: Sources) -> int:
    return min(sources.tower.parts.n_prefix, sources.n_positions)

"""Nodes of a graph: what they are, where, and how they are named; one numbering of kinds for tables and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

#: The first seven in the order in which a graph holds them. `rest`: features that were active and are no nodes of their
#: own. `attention`: features of what attention adds, where an autoencoder of it was given
KINDS = ("feature", "rest", "error", "skip", "input", "bias", "target", "attention", "attention_error")
#: What a bias node stands for: the constant part of a layer's attention, of what is written in the MLP's place, of what
#: its encoder (and the norm before it) adds to every pre-activation; of the read-out; and of encoders of attention
BIASES = ("attention", "mlp", "read", "head", "attention read")


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        index: its row and column.
        kind: one of `KINDS`.
        layer: its layer; -1 for inputs, targets and the read-out's bias.
        position: its token; -1 where positions are summed, for biases and targets.
        feature: its number in the layer, or of the bias in `BIASES`, or of the target; -1 for the others.
        activation: a feature's code (summed over positions in a summed graph), a target's value; 0 for the others.
        influence: how much of the target's explanation goes through it; see `Graph.influence`.
        name: such as `2/117 @r3c4`.
    """

    index: int
    kind: str
    layer: int
    position: int
    feature: int
    activation: float
    influence: float
    name: str


@dataclass(frozen=True)
class Nodes:
    """All nodes of a graph, as a table; `nodes[i]` is one of them.

    Attributes:
        kind: `(nodes,)` int64, numbers in `KINDS`.
        layer: `(nodes,)` int64.
        position: `(nodes,)` int64.
        feature: `(nodes,)` int64.
        activation: `(nodes,)` float64.
        influence: `(nodes,)` float64.
        position_names: names of the positions.
        target_names: names of the targets.
    """

    kind: Int[Tensor, " nodes"]
    layer: Int[Tensor, " nodes"]
    position: Int[Tensor, " nodes"]
    feature: Int[Tensor, " nodes"]
    activation: Float[Tensor, " nodes"]
    influence: Float[Tensor, " nodes"]
    position_names: tuple[str, ...]
    target_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kind)

    def __iter__(self) -> Iterator[Node]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Node:
        index = range(len(self))[index]
        kind = KINDS[int(self.kind[index])]
        layer, position, feature = (int(column[index]) for column in (self.layer, self.position, self.feature))
        return Node(
            index,
            kind,
            layer,
            position,
            feature,
            float(self.activation[index]),
            float(self.influence[index]),
            self._name(kind, layer, position, feature),
        )

    def of(self, *kinds: str) -> Bool[Tensor, " nodes"]:
        """`(nodes,)` bool: the nodes of some kinds."""
        wanted = torch.tensor([KINDS.index(kind) for kind in kinds], device=self.kind.device)
        return torch.isin(self.kind, wanted)

    def find(self, layer: int, feature: int, position: int = -1) -> int | None:
        """The index of a feature's node; None where the graph has none."""
        found = self.of("feature") & (self.layer == layer) & (self.feature == feature) & (self.position == position)
        where = found.nonzero()
        return int(where[0]) if len(where) else None

    def keep(self, chosen: Shaped[Tensor, " some"]) -> Nodes:
        """Some of the nodes, in the same order."""
        columns = {name: getattr(self, name)[chosen] for name in ("kind", "layer", "position", "feature")}
        return replace(self, **columns, activation=self.activation[chosen], influence=self.influence[chosen])

    def _name(self, kind: str, layer: int, position: int, feature: int) -> str:
        place = "" if position < 0 else f" @{self.position_names[position]}"
        if kind == "feature":
            return f"{layer}/{feature}{place}"
        if kind == "attention":
            return f"attention {layer}/{feature}{place}"
        if kind == "target":
            return self.target_names[feature]
        if kind == "bias":
            return "bias of the read-out" if layer < 0 else f"bias {layer} {BIASES[feature]}"
        if kind == "input":
            return f"input{place}"
        return f"{kind.replace('_', ' ')} {layer}{place}"


def make_nodes(
    parts: list[tuple[str, Tensor, Tensor, Tensor, Tensor | None]],
    position_names: list[str],
    target_names: list[str],
) -> Nodes:
    """A table of nodes.

    Args:
        parts: kind, layers, positions, features and activations (None for 0), each `(some,)`, in the order wanted.
        position_names: names of the positions.
        target_names: names of the targets.
    """
    layer = torch.cat([part[1] for part in parts])
    position = torch.cat([part[2] for part in parts])
    feature = torch.cat([part[3] for part in parts])
    kind = torch.cat([torch.full_like(layers, KINDS.index(name)) for name, layers, *_ in parts])
    activation = torch.cat(
        [torch.zeros(len(layers), dtype=torch.float64) if a is None else a.double() for _, layers, _, _, a in parts]
    )
    return Nodes(
        kind,
        layer,
        position,
        feature,
        activation,
        torch.zeros_like(activation),
        tuple(position_names),
        tuple(target_names),
    )

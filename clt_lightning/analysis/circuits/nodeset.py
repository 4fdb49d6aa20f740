"""A set of nodes and what is to be done to them, as intervened on, saved and compared: one form for all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_json

Action = Literal["set", "scale"]
NODE_KINDS = ("feature", "error", "bias")
_KEYS = ("kind", "layer", "feature", "position", "action", "value")


@dataclass(frozen=True)
class NodeEdit:
    """One node, or one feature (or error) at all positions, and what is done to it.

    Attributes:
        layer: its layer.
        feature: its number in the layer; None for errors and biases.
        position: its token; None for all positions (`set` makes a feature fire at each of them).
        kind: `feature`; `error`: what the layer's MLP adds less what is rebuilt; `bias`: the layer's decoder bias.
        action: `set` makes a code the value, `scale` multiplies by it; 0 takes the node away.
        value: finite; in the units of the code for `set`.
    """

    layer: int
    feature: int | None = None
    position: int | None = None
    kind: str = "feature"
    action: Action = "scale"
    value: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in _KEYS}

    def __str__(self) -> str:
        place = "" if self.position is None else f" @{self.position}"
        name = f"{self.layer}/{self.feature}" if self.kind == "feature" else f"{self.kind} {self.layer}"
        return f"{name}{place} {'=' if self.action == 'set' else 'x'} {self.value:g}"


@dataclass(frozen=True)
class NodeSet:
    """Nodes that are changed together.

    Attributes:
        edits: each node once.
        name: in words.
    """

    edits: tuple[NodeEdit, ...]
    name: str = ""

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[NodeEdit]:
        return iter(self.edits)

    @classmethod
    def features(
        cls,
        places: Iterable[tuple[int, int] | tuple[int, int, int]],
        action: Action = "scale",
        value: float = 0.0,
        name: str = "",
    ) -> Self:
        """Features as `(layer, feature)` at all positions, or `(layer, feature, position)`, all changed alike."""
        edits = [
            NodeEdit(place[0], place[1], place[2] if len(place) > 2 else None, "feature", action, value)
            for place in places
        ]
        return cls(tuple(edits), name)

    @classmethod
    def of_graph(
        cls, graph: Any, indices: Sequence[int], action: Action = "scale", value: float = 0.0, name: str = ""
    ) -> Self:
        """Nodes of a graph by index.

        Raises:
            UserError: a node that cannot be intervened on.
        """
        edits = []
        for index in indices:
            node = graph.nodes[index]
            if node.kind not in ("feature", "error"):
                raise UserError(f"node {index} ({node.name}) cannot be changed: features and errors can")
            feature = node.feature if node.kind == "feature" else None
            position = None if node.position < 0 else node.position
            edits.append(NodeEdit(node.layer, feature, position, node.kind, action, value))
        return cls(tuple(edits), name)

    def with_action(self, action: Action, value: float) -> NodeSet:
        """The same nodes, changed another way."""
        edits = (NodeEdit(e.layer, e.feature, e.position, e.kind, action, value) for e in self.edits)
        return NodeSet(tuple(edits), self.name)

    def check(self, n_layers: int, n_features: int, n_positions: int) -> None:
        """Whether these nodes can exist.

        Raises:
            UserError: which one cannot, and why.
        """
        if not self.edits:
            raise UserError("the set of nodes is empty")
        seen: set[tuple[Any, ...]] = set()
        for edit in self.edits:
            _check(edit, n_layers, n_features, n_positions)
            key = (edit.kind, edit.layer, edit.feature, edit.position)
            everywhere = (edit.kind, edit.layer, edit.feature, None)
            overlaps = key in seen or everywhere in seen
            if edit.position is None:
                overlaps = overlaps or any(other[:3] == key[:3] for other in seen)
            if overlaps:
                raise UserError(f"{edit}: this node is in the set twice")
            seen.add(key)

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """Plain values; written to a file as well if one is named."""
        content = {"name": self.name, "nodes": [edit.to_json() for edit in self.edits]}
        if path is not None:
            write_json(path, content)
        return content

    @classmethod
    def from_json(cls, source: str | Path | dict[str, Any]) -> Self:
        """The inverse of `to_json`: a file, or what it holds.

        Raises:
            UserError: something is no set of nodes, or an empty one (names the file and the node).
        """
        where = "" if isinstance(source, dict) else f"{source}: "
        content = source if isinstance(source, dict) else read_json(source)
        nodes = content.get("nodes")
        if not isinstance(nodes, list):
            raise UserError(f"{where}no set of nodes: it holds a list 'nodes' (and 'name')")
        if not nodes:
            raise UserError(f"{where}the set of nodes is empty: there is nothing to change")
        return cls(tuple(_read(f"{where}node {i}", node) for i, node in enumerate(nodes)), str(content.get("name", "")))


def _read(where: str, node: Any) -> NodeEdit:
    if not isinstance(node, dict) or "layer" not in node:
        raise UserError(f"{where}: expected a table with layer, feature, position, got {node!r}")
    unknown = sorted(set(node) - set(_KEYS))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(_KEYS)}")
    for name in ("layer", "feature", "position"):
        value = node.get(name)
        wanted = isinstance(value, int) and not isinstance(value, bool)
        if not wanted and not (value is None and name != "layer"):
            raise UserError(f"{where}: {name} must be a whole number, got {value!r}")
    value = node.get("value", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: value must be a number, got {value!r}")
    return NodeEdit(
        node["layer"],
        node.get("feature"),
        node.get("position"),
        str(node.get("kind", "feature")),
        node.get("action", "scale"),
        float(value),
    )


def _check(edit: NodeEdit, n_layers: int, n_features: int, n_positions: int) -> None:
    if edit.kind not in NODE_KINDS:
        raise UserError(f"{edit}: a node is one of {', '.join(NODE_KINDS)}, got {edit.kind!r}")
    if edit.action not in ("set", "scale"):
        raise UserError(f"{edit}: an action is set or scale, got {edit.action!r}")
    if not 0 <= edit.layer < n_layers:
        raise UserError(f"{edit}: there is no layer {edit.layer}: layers are 0..{n_layers - 1}")
    if edit.kind == "feature":
        if edit.feature is None or not 0 <= edit.feature < n_features:
            raise UserError(f"{edit}: there is no feature {edit.feature}: features are 0..{n_features - 1}")
    elif edit.feature is not None:
        raise UserError(f"{edit}: a node of kind {edit.kind} has no feature, got {edit.feature}")
    elif edit.action == "set":
        raise UserError(f"{edit}: a node of kind {edit.kind} can be scaled, not set")
    if edit.position is not None and not 0 <= edit.position < n_positions:
        raise UserError(f"{edit}: there is no position {edit.position}: positions are 0..{n_positions - 1}")
    if not abs(edit.value) < float("inf"):
        raise UserError(f"{edit}: the value must be finite")

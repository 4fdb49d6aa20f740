"""The attribution graph of one image: who contributes how much to whom, which nodes matter, how much is explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis import notebook
from clt_lightning.analysis.circuits.edges import Edges, check_share, cumulated_share, cut
from clt_lightning.analysis.circuits.nodes import Nodes
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError

#: Kinds that have a code
CODES = ("feature", "attention")
#: Kinds that take part in influence, as circuit-tracer has them; biases and what is left out are counted apart
COUNTED = ("feature", "attention", "error", "attention_error", "skip", "input", "target")
#: Kinds that explain nothing further
UNEXPLAINED = ("error", "attention_error", "skip")
#: Kinds at which paths end
ENDS = ("input", "error", "attention_error", "skip", "rest", "bias")


@dataclass(frozen=True)
class Scores:
    """How much of a graph its features explain.

    Attributes:
        replacement: of the influence that reaches inputs, errors and skips, the inputs' share (biases not counted).
        completeness: of the inputs of all nodes, weighted by their influence, the share that is neither error nor skip
            (biases not counted).
        ends: where influence ends if biases and features left out count as well: shares of input, error, skip, rest and
            bias, which sum to 1.
        constants: of the absolute edges into features and targets, the biases' share.
    """

    replacement: float
    completeness: float
    ends: Mapping[str, float]
    constants: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "replacement": self.replacement,
            "completeness": self.completeness,
            "ends": dict(self.ends),
            "constants": self.constants,
        }


@dataclass(frozen=True)
class Graph:
    """The graph of one image.

    Attributes:
        nodes: features, what is left out, errors, skips, inputs, biases, targets, in this order.
        edges: what each node contributes to each feature's pre-activation and to each target. In a graph that was not
            pruned, the edges into a node sum to its activation, or to the target's value: biases are nodes.
        targets: what is explained.
        weights: `(targets,)` float64: how much each target counts.
        tangent: `(targets, nodes)`: the targets' rows to first order, with the last norm and the embedding's norm at
            work: for predictions. `edges` holds the norms, so that its rows add up.
        summed: whether positions are summed: a node is a feature at all its positions then.
        skip: `node` (what the linear skip adds is a node, its inputs are not followed) or `through`.
        about: the backbone, the transcoder, the image, and how the graph was made: plain values.
        pruned: whether nodes or edges were taken away.
        scores: how much is explained; of the graph before pruning.
    """

    nodes: Nodes
    edges: Edges
    targets: tuple[Target, ...]
    weights: Float[Tensor, " targets"]
    tangent: Float[Tensor, "targets nodes"]
    summed: bool
    skip: str
    about: dict[str, Any] = field(repr=False)
    pruned: bool = False
    scores: Scores = field(default=Scores(0.0, 0.0, {}, 0.0))

    def __repr__(self) -> str:
        kinds = {name: int(self.nodes.of(name).sum()) for name in (*CODES, *UNEXPLAINED, "input", "bias")}
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        names = "; ".join(target.name for target in self.targets)
        return (
            f"Graph of {names}: {counts} nodes, {len(self.edges)} edges, replacement {self.scores.replacement:.3f}, "
            f"completeness {self.scores.completeness:.3f}"
        )

    def _repr_html_(self) -> str:
        table = self.nodes
        top = [table[i] for i in self.top(12)]
        rows = [[node.name, f"{node.activation:.3f}", f"{node.influence:.4f}"] for node in top]
        ends = ", ".join(f"{kind} {share:.0%}" for kind, share in self.scores.ends.items() if share)
        title = f"{self!r}; with biases, influence ends in {ends}"
        return notebook.table(["feature", "code", "influence"], rows, title)

    @cached_property
    def target_weights(self) -> Tensor:
        """`(nodes,)` float64: the targets' weights, 0 elsewhere."""
        out = torch.zeros(len(self.nodes), dtype=torch.float64, device=self.weights.device)
        out[self.nodes.of("target")] = self.weights
        return out

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> Graph:
        """The nodes and edges that carry most of the influence; inputs, biases and targets stay.

        Args:
            nodes: share of the influence of all nodes that the kept ones have.
            edges: share of the edges' influence, among kept nodes.

        Raises:
            UserError: a share outside 0..1.
        """
        nodes, edges = check_share("nodes", nodes), check_share("edges", edges)
        table, all_edges = self.nodes, self.edges
        counted = table.of(*COUNTED)
        influence = torch.where(counted, table.influence, 0.0)
        always = table.of("input", "target", "bias")
        kept = always | (counted & (influence >= cut(influence[counted], nodes)))
        among = kept[all_edges.source] & kept[all_edges.target]
        some = all_edges.keep(among)
        shares = some.shares(counted)
        carried = shares * (some.influence(shares, self.target_weights) + self.target_weights)[some.target]
        real = counted[some.source]
        chosen = ~real | (carried >= cut(carried[real], edges))
        features, needed = table.of(*CODES), table.of(*CODES, *UNEXPLAINED)
        while True:
            before = int(kept.sum())
            chosen &= kept[some.source] & kept[some.target]
            ways = some.keep(chosen & real)
            leads = torch.zeros_like(kept).index_fill_(0, ways.source, True)
            is_led_to = torch.zeros_like(kept).index_fill_(0, ways.target, True)
            kept = kept & (~needed | leads) & (~features | is_led_to)
            if int(kept.sum()) == before:
                break
        chosen &= kept[some.source] & kept[some.target]
        return replace(
            self,
            nodes=table.keep(kept),
            edges=some.keep(chosen).among(kept),
            tangent=self.tangent[:, kept],
            about=self.about | {"node_threshold": nodes, "edge_threshold": edges},
            pruned=True,
        )

    def cumulated(self) -> Float[Tensor, " nodes"]:
        """`(nodes,)`: the share of all influence that a node and the more influential ones have; 0 for targets."""
        out = cumulated_share(self.nodes.influence)
        return torch.where(self.nodes.of("target"), 0.0, out)

    def top(self, n: int, *kinds: str) -> list[int]:
        """The indices of the n most influential nodes of some kinds (features by default), most influential first."""
        wanted = self.nodes.of(*(kinds or ("feature",))).nonzero().flatten()
        order = self.nodes.influence[wanted].argsort(descending=True, stable=True)[:n]
        return wanted[order].tolist()

    def to_json(self, path: str | Path, slug: str | None = None) -> Path:
        """Write the graph as circuit-tracer's frontend reads it, with fields of our own beside (docs/circuits.md).

        Args:
            path: the file; `graph-metadata.json` beside it lists it.
            slug: its name; None takes the file's.

        Returns:
            the path.
        """
        from clt_lightning.analysis.circuits.interchange import write_graph

        return write_graph(self, Path(path), slug)

    @classmethod
    def from_json(cls, path: str | Path) -> Graph:
        """The inverse of `to_json`, but for what is not in the file (see `interchange.read_graph`)."""
        from clt_lightning.analysis.circuits.interchange import read_graph

        return read_graph(Path(path))

    def predict(self, changes: Mapping[int, float], rows: str = "tangent") -> Prediction:
        """What the graph says of an intervention, gates held: `(I - W)^-1` applied to it (see `predict.predicted`).

        Args:
            changes: relative changes of nodes by index: -1 takes a node away, 1 doubles it. Features among them are
                pinned: what reaches them does not change them further.
            rows: `tangent` or `frozen`: how targets read the last stream.

        Raises:
            UserError: a graph that cannot predict: positions summed, skips as nodes, pruned, or features left out.
        """
        from clt_lightning.analysis.circuits.predict import predicted

        found = predicted(self, [changes], rows)
        return Prediction(found.targets[:, 0], found.activations[:, 0])


@dataclass(frozen=True)
class Prediction:
    """Predicted changes.

    Attributes:
        targets: `(targets,)` change of each target's value.
        activations: `(nodes,)` change of each node's activation; for nodes without one, the relative change.
    """

    targets: Float[Tensor, " targets"]
    activations: Float[Tensor, " nodes"]


def with_influence(graph: Graph) -> Graph:
    """The graph with its nodes' influence and its scores."""
    nodes, edges, weights = graph.nodes, graph.edges, graph.target_weights
    if not len(graph.targets):
        raise UserError("a graph needs at least one target")
    counted = nodes.of(*COUNTED)
    shares = edges.shares(counted)
    influence = edges.influence(shares, weights)
    everything = torch.ones_like(counted)
    with_biases = edges.shares(everything)
    apart = edges.influence(with_biases, weights)

    def total(values: Tensor, *kinds: str) -> float:
        return float(values[nodes.of(*kinds)].sum())

    inputs, unexplained = total(influence, "input"), total(influence, *UNEXPLAINED)
    output = influence + weights
    poor = torch.zeros_like(weights).index_add_(
        0, edges.target, torch.where(nodes.of(*UNEXPLAINED)[edges.source], shares, 0.0)
    )
    ends = {kind: total(apart, kind) for kind in ENDS}
    whole = sum(ends.values())
    size = edges.weight.double().abs()
    scores = Scores(
        inputs / (inputs + unexplained) if inputs + unexplained else float("nan"),
        float(((1 - poor) * output).sum() / output.sum()),
        {kind: value / whole if whole else float("nan") for kind, value in ends.items()},
        float(size[nodes.of("bias")[edges.source]].sum() / size.sum()) if len(edges) else float("nan"),
    )
    influence = torch.where(counted, influence, apart)
    return replace(graph, nodes=replace(nodes, influence=influence), scores=scores)

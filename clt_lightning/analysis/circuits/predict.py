"""What a graph says of interventions: `(I - W)^-1` applied to them, W being edges over activations, signs and all.

`W[t, s] = M[t, s] / a_s` is how fast target t's pre-activation moves with the code of s, along all held paths that pass
no other feature; `(I - W)^-1` adds the paths that do. Influence (absolute shares) is a ranking and predicts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.graph import CODES, Graph
from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class Predicted:
    """Predicted changes of several interventions.

    Attributes:
        targets: `(targets, interventions)` float64: change of each target's value.
        activations: `(nodes, interventions)` float64: change of each feature's code; of other nodes the relative change
            that was asked for.
    """

    targets: Tensor
    activations: Tensor


@torch.no_grad()
def predicted(graph: Graph, interventions: Sequence[Mapping[int, float]], rows: str = "tangent") -> Predicted:
    """Changes of targets and features under interventions, everything held but what they change.

    Args:
        graph: one with every active feature at each position.
        interventions: for each, relative changes of nodes by index: -1 takes a node away, 1 doubles it. Features among
            them are pinned: what reaches them does not change them further.
        rows: `tangent` (the read-out to first order: what a live model does) or `frozen` (its norms held).

    Raises:
        UserError: a graph that holds less than that, an unknown node, or one that cannot be changed.
    """
    check_predicts(graph)
    if rows not in ("tangent", "frozen"):
        raise UserError(f"rows must be tangent or frozen, got {rows!r}")
    nodes, n = graph.nodes, len(graph.nodes)
    features = nodes.of(*CODES)
    relative = torch.zeros(n, len(interventions), dtype=torch.float64)
    pinned = torch.zeros(n, len(interventions), dtype=torch.bool)
    for column, changes in enumerate(interventions):
        for index, change in changes.items():
            if not 0 <= index < n:
                raise UserError(f"the graph has no node {index}: there are {n}")
            if nodes[index].kind == "target":
                raise UserError(f"node {index} ({nodes[index].name}) is a target: it is what is predicted")
            relative[index, column] = change
            pinned[index, column] = True
    activation = torch.where(features, nodes.activation, 1.0)[:, None]
    edges = graph.edges
    # a feature reads what lower layers wrote: one layer after another solves the triangular system, attention first
    for layer in sorted(set(nodes.layer[features].tolist())):
        for kind in reversed(CODES):
            here = nodes.of(kind) & (nodes.layer == layer)
            reached = edges.keep(here[edges.target]).times(relative)
            free = here[:, None] & ~pinned
            relative = torch.where(free, reached / activation, relative)
    if rows == "tangent":
        targets = graph.tangent.double() @ relative
    else:
        targets = edges.keep(nodes.of("target")[edges.target]).times(relative)[nodes.of("target")]
    return Predicted(targets, relative * activation)


def check_predicts(graph: Graph) -> None:
    """Whether a graph holds all that a prediction needs.

    Raises:
        UserError: what it lacks.
    """
    if graph.summed:
        raise UserError(
            "a graph with summed positions predicts nothing: a feature's codes change differently at each position; "
            "make it with positions='each'"
        )
    if graph.pruned:
        raise UserError("a pruned graph predicts nothing: what was taken away carries effects too; keep the whole one")
    if bool(graph.nodes.of("skip").any()):
        raise UserError(
            "this graph holds the linear skip's output as nodes, whose changes it does not follow; make it with "
            "skip='through'"
        )
    if bool(graph.nodes.of("rest").any()):
        left = graph.about.get("active", "more")
        raise UserError(
            f"this graph leaves features out ({left} are active), and what goes through them: raise max_nodes "
            f"(it was {graph.about.get('max_nodes')})"
        )

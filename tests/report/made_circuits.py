"""A made-up graph of an image: every kind of node, edges of both signs, ids that colliding numbers would confuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clt_lightning.analysis.circuits.edges import Edges
from clt_lightning.analysis.circuits.graph import Graph, with_influence
from clt_lightning.analysis.circuits.nodes import make_nodes
from clt_lightning.analysis.target import Target


def make_graph(names: Sequence[str], seed: int, layers: int, positions: int, features: int = 6) -> Graph:
    """`features` a layer: number 3 at position 2, 5 at position 4, and others at random places.

    Args:
        names: of the targets.
        seed: of all weights and places.
        layers: L.
        positions: P, [CLS] first.
        features: a layer, at least 2.
    """
    g = torch.Generator().manual_seed(seed)

    def integers(high: int, n: int) -> torch.Tensor:
        return torch.randint(0, high, (n,), generator=g)

    number = torch.cat([torch.tensor([3, 5]), 10 + 7 * torch.arange(features - 2)])
    feature = number.repeat(layers)
    layer = torch.arange(layers).repeat_interleave(features)
    position = torch.cat([torch.cat([torch.tensor([2, 4]), integers(positions, features - 2)]) for _ in range(layers)])
    nowhere = torch.full((layers,), -1)
    each = torch.arange(layers)
    code = 0.2 + 2 * torch.rand(len(feature), generator=g)
    index = torch.arange(len(names))
    parts: list[Any] = [
        ("feature", layer, position, feature, code),
        ("rest", each, nowhere, nowhere, None),
        ("error", each, torch.full((layers,), 3), nowhere, None),
        ("skip", each, torch.full((layers,), 1), nowhere, None),
        ("input", torch.full((positions,), -1), torch.arange(positions), torch.full((positions,), -1), None),
        (
            "bias",
            torch.cat([each, torch.tensor([-1])]),
            torch.full((layers + 1,), -1),
            torch.tensor([1] * layers + [3]),
            None,
        ),
        ("target", index * 0 - 1, index * 0 - 1, index, torch.full((len(names),), 7.0)),
    ]
    tokens = ["CLS", *(f"p{p}" for p in range(positions - 1))]
    nodes = make_nodes(parts, tokens, list(names))
    n = len(nodes)
    is_target, has_code = nodes.of("target"), nodes.of("feature")
    level = torch.where(nodes.of("error", "skip"), nodes.layer.double() + 0.5, nodes.layer.double())
    level[is_target] = layers
    below = level[:, None] < level[None, :]
    pairs = below & (is_target | has_code)[None, :] & ~is_target[:, None]
    source, target = pairs.nonzero().unbind(1)
    order = torch.argsort(target * n + source)
    weight = torch.randn(len(order), generator=g, dtype=torch.float64)
    edges = Edges(source[order], target[order], weight, n)
    shares = torch.full((len(names),), 1 / len(names), dtype=torch.float64)
    targets = tuple(Target(name, torch.zeros(4)) for name in names)
    about = {"n_layers": layers, "n_prefix": 1, "active": 99}
    graph = Graph(nodes, edges, targets, shares, torch.zeros(len(names), n), False, "node", about)
    return with_influence(graph)

"""Which nodes are a circuit: so many of each layer, by a score, or by their edges into what is chosen already."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError

#: The paper's shares of a layer's nodes
FRACTIONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def counts_of(fractions: Sequence[float], n_nodes: int) -> list[int]:
    """How many nodes of each layer are a share of them, rounded up.

    Raises:
        UserError: shares outside 0..1, or not ascending from 0 to 1: curves are normalised by their ends.
    """
    if list(fractions) != sorted(set(fractions)) or len(fractions) < 2 or fractions[0] != 0 or fractions[-1] != 1:
        raise UserError(f"fractions must ascend from 0 to 1, got {list(fractions)}")
    return [min(n_nodes, math.ceil(share * n_nodes - 1e-9)) for share in fractions]


def by_score(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """The nodes of the highest scores in each layer.

    Args:
        scores: `(layers, nodes)`.
        counts: nodes of each layer.

    Returns:
        `(counts, layers, nodes)` bool.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    )
    return place[None] < torch.tensor(list(counts), device=scores.device)[:, None, None]


def by_edges(nodes: Tensor, edges: Sequence[tuple[Tensor, Tensor]], counts: Sequence[int]) -> Tensor:
    """The paper's rule: the last layer by node; going back, those with the largest edges into what is chosen.

    Edges that are negative do not count. Between sources of equal edges the node's own score decides.

    Args:
        nodes: `(layers, nodes)` scores.
        edges: by layer l, the readers in layer l + 1 `(readers,)` and what reaches each `(readers, nodes)`.
        counts: nodes of each layer.

    Returns:
        `(counts, layers, nodes)` bool.
    """
    last = len(nodes) - 1
    chosen = [by_score(nodes[last:], counts)[:, 0]]
    for layer in range(last - 1, -1, -1):
        readers, weight = edges[layer]
        picked = chosen[-1][:, readers].to(weight)
        reach = picked @ weight.clamp(min=0)  # (counts, nodes)
        chosen.append(torch.stack([_top(row, nodes[layer], n) for row, n in zip(reach, counts)]))
    return torch.stack(chosen[::-1], 1)


def _top(first: Tensor, second: Tensor, n: int) -> Tensor:
    """`(nodes,)` bool: the n highest of a score; ties by another one."""
    by_second = second.argsort(descending=True, stable=True)
    order = by_second[first[by_second].argsort(descending=True, stable=True)]
    return torch.zeros_like(first, dtype=torch.bool).index_fill_(0, order[:n], True)


def random_scores(active: Tensor, generator: torch.Generator) -> Tensor:
    """`(layers, nodes)`: a random order in which active nodes come before the others."""
    return torch.rand(active.shape, generator=generator) + active.cpu()

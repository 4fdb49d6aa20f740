"""Edges split over the attention heads that carry them, exactly: all else being held, a path is a sum over heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.layout import Layout, lay_out
from clt_lightning.analysis.circuits.linear import Step
from clt_lightning.analysis.circuits.nodes import Node
from clt_lightning.analysis.circuits.read_out import Rows
from clt_lightning.analysis.circuits.sources import encoder_rows
from clt_lightning.core.errors import UserError

#: Rows in one backward
_BATCH = 256


@dataclass(frozen=True)
class HeadSplit:
    """The edges into one node, by the last head that each path crosses before the node reads it.

    Attributes:
        node: the index of the node.
        direct: `(nodes,)` what reaches it without crossing any attention: at its own position.
        heads: `(layers, heads, nodes)` what reaches it through each head, whatever was crossed before.
    """

    node: int
    direct: Float[Tensor, " nodes"]
    heads: Float[Tensor, "layers heads nodes"]

    @property
    def total(self) -> Float[Tensor, " nodes"]:
        """`(nodes,)`: the edges themselves."""
        return self.direct + self.heads.sum((0, 1))

    def table(self) -> Float[Tensor, "layers heads"]:
        """`(layers, heads)`: what the node reads of each head's output, less the constant part of the attention."""
        return self.heads.sum(2)

    def of(self, source: int) -> Float[Tensor, "layers heads"]:
        """`(layers, heads)`: one edge's parts, without `direct`."""
        return self.heads[:, :, source]


@torch.no_grad()
def split_by_heads(model: ImageModel, graph: Graph, node: int, rows: Rows = "frozen") -> HeadSplit:
    """Split the edges into a node over the heads that carry them.

    The constant of a layer's attention (biases of values and output) belongs to no head: it is in `direct`.

    Args:
        model: the image that the graph is of, run with the graph's `skip`.
        graph: not pruned, positions each.
        node: the index of a feature or a target.
        rows: for a target, how it reads the last stream.

    Raises:
        UserError: a node without edges into it, or a graph that does not fit the image.
    """
    if graph.summed or graph.pruned:
        raise UserError("edges are split over heads in a graph with positions='each' that was not pruned")
    wanted = graph.nodes[node]
    if wanted.kind not in ("feature", "target"):
        raise UserError(f"node {node} ({wanted.name}) has no edges into it: features and targets have")
    sources, tower = model.sources, model.tower
    layout = lay_out(sources, False)
    columns = columns_of(layout, graph)
    n_heads = model.parts.blocks[0].attention.n_heads
    L = tower.n_layers
    direct = sources.like.new_zeros(1, sources.n_columns)
    top, gradient, injected = _start(model, wanted, graph, rows, direct)
    #: gradients by each attention's output, along paths that cross no attention
    reaching: list[tuple[int, Tensor]] = []
    for layer in range(top, -1, -1):
        block = tower.blocks[layer]
        if gradient is not None:
            sources.add(Step(layer, "mlp", gradient), direct)
            past = tower.past_mlp_adjoint(layer, gradient)
            if past is not None:
                gradient = gradient + block.read_adjoint(past)
        if layer == top and injected is not None:
            add = block.read_adjoint(injected)
            gradient = add if gradient is None else gradient + add
        assert gradient is not None
        sources.add(Step(layer, "attention", gradient), direct)
        reaching.append((layer, gradient))
    assert gradient is not None
    sources.add(Step(-1, "input", gradient), direct)
    heads = sources.like.new_zeros(L, n_heads, sources.n_columns)
    pairs = [(layer, head) for layer, _ in reaching for head in range(n_heads)]
    found = dict(reaching)
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        for (layer, head), row in zip(part, _below(model, found, part)):
            heads[layer, head] = row
    n = len(graph.nodes)

    def among(rows_: Tensor) -> Tensor:
        rows_ = rows_.cpu()
        return rows_.new_zeros(len(rows_), n).index_add_(1, columns, rows_)

    return HeadSplit(node, among(direct)[0], among(heads.flatten(0, 1)).unflatten(0, (L, n_heads)))


@torch.no_grad()
def head_table(model: ImageModel, graph: Graph, nodes: Sequence[int]) -> Float[Tensor, "layers heads"]:
    """`(layers, heads)`: what heads carry into some nodes, by absolute size, each node counting by its influence."""
    total = torch.zeros(model.tower.n_layers, model.parts.blocks[0].attention.n_heads, dtype=torch.float64)
    weights = graph.nodes.influence + graph.target_weights
    for node in nodes:
        split = split_by_heads(model, graph, node)
        size = split.total.abs().sum().clamp(min=1e-30)
        total += float(weights[node]) * (split.heads.abs().sum(2) / size).double().cpu()
    return total


def _start(
    model: ImageModel, wanted: Node, graph: Graph, rows: Rows, direct: Tensor
) -> tuple[int, Tensor | None, Tensor | None]:
    """The layer to begin at, the gradient by the last stream, and that by the MLP's input there."""
    sources = model.sources
    if wanted.kind == "target":
        read_out = model.row(graph.targets[wanted.feature], rows)
        direct[:, sources.head_column] += read_out.constant
        return model.tower.n_layers - 1, read_out.gradient[None].to(sources.like), None
    feature = torch.tensor([wanted.feature], device=sources.like.device)
    gradient = torch.zeros_like(sources.like)
    gradient[0, wanted.position] = encoder_rows(model.clt, wanted.layer, feature, sources.like)[0]
    position = torch.tensor([wanted.position], device=sources.like.device)
    direct[:, sources.bias_column(wanted.layer, 2)] += sources.read_constants(wanted.layer, feature, position)
    return wanted.layer, None, sources.read_gradient(wanted.layer, gradient)


def _below(model: ImageModel, reaching: dict[int, Tensor], pairs: list[tuple[int, int]]) -> Tensor:
    """`(pairs, columns)`: what comes through single heads, from everything below them."""
    sources, tower = model.sources, model.tower
    out = sources.like.new_zeros(len(pairs), sources.n_columns)
    n_heads = model.parts.blocks[0].attention.n_heads

    def entering(layer: int) -> Tensor | None:
        mine = [row for row, (at, _) in enumerate(pairs) if at == layer]
        if not mine:
            return None
        mask = torch.zeros(len(mine), n_heads).to(sources.like)
        for i, row in enumerate(mine):
            mask[i, pairs[row][1]] = 1.0
        one = reaching[layer].expand(len(mine), -1, -1)
        gradient = sources.like.new_zeros(len(pairs), *sources.like.shape[1:])
        gradient[mine] = tower.blocks[layer].attend_adjoint(one, mask)
        return gradient

    for step in tower.pull(max(layer for layer, _ in pairs), len(pairs), entering=entering):
        sources.add(step, out)
    return out


def columns_of(layout: Layout, graph: Graph) -> Tensor:
    """`(nodes,)`: the columns of an image's sources whose features are a graph's nodes: see `Layout.columns`.

    Raises:
        UserError: the graph is of another image.
    """
    features = graph.nodes.of("feature")
    nodes = graph.nodes
    base = max(int(nodes.feature.max()), int(layout.feature.max())) + 1
    places = len(nodes.position_names)

    def key(layer: Tensor, position: Tensor, feature: Tensor) -> Tensor:
        return (layer * places + position) * base + feature

    n = layout.n_features
    known = key(layout.layer[:n], layout.position[:n], layout.feature[:n])
    wanted = key(nodes.layer[features], nodes.position[features], nodes.feature[features])
    at = torch.searchsorted(known, wanted).clamp(max=max(n - 1, 0))
    columns, _ = layout.columns(at)
    fits = n > 0 and torch.equal(known[at], wanted)
    if not fits or int(columns.max()) + 1 + len(graph.targets) != len(nodes):
        raise UserError("the graph is of another image or transcoder, or made with another skip than the image was run")
    return columns

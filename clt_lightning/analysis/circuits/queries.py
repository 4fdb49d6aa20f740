"""Why a head looks where it looks: its score as a sum over pairs of nodes, one read by the query and one by the key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.heads import columns_of
from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.layout import lay_out
from clt_lightning.backbone.attention_parts import AttentionParts, Norm, queries_and_keys, score_scale
from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class HeadScore:
    """One score of one head, split up.

    The softmax sees scores only against each other: `contrast` is the score less its mean over all keys, and the pairs
    sum to that.

    Attributes:
        layer: the block.
        head: which.
        query: position that looks.
        key: position that is looked at.
        score: `<query, key>` times the scale.
        contrast: the score less the query's mean over keys.
        pairs: `(nodes, nodes)`: what node f at the query and node g at the key add to the contrast together. Paths
            through other features are not followed; constants belong to bias nodes.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    contrast: float
    pairs: Float[Tensor, "queries keys"]

    def by_query(self) -> Float[Tensor, " queries"]:
        """`(nodes,)`: each node's marginal where the query reads it; sums to `contrast`."""
        return self.pairs.sum(1)

    def by_key(self) -> Float[Tensor, " keys"]:
        """`(nodes,)`: each node's marginal where the key reads it; sums to `contrast`."""
        return self.pairs.sum(0)


@torch.no_grad()
def explain_score(model: ImageModel, graph: Graph, layer: int, head: int, query: int, key: int) -> HeadScore:
    """Split one attention score over pairs of nodes.

    Args:
        model: the image that the graph is of, run with the graph's `skip`.
        graph: not pruned, positions each.
        layer: the block.
        head: which head.
        query: position that looks.
        key: position that is looked at.

    Raises:
        UserError: numbers that do not exist, or a graph that does not fit.
    """
    if graph.summed or graph.pruned:
        raise UserError("scores are split over a graph with positions='each' that was not pruned")
    attention = model.parts.blocks[layer if 0 <= layer < len(model.parts.blocks) else 0].attention
    P = model.parts.n_positions
    for name, value, most in (
        ("layer", layer, model.tower.n_layers),
        ("head", head, attention.n_heads),
        ("query", query, P),
        ("key", key, P),
    ):
        if not 0 <= value < most:
            raise UserError(f"there is no {name} {value}: they are 0..{most - 1}")
    sources = model.sources
    columns = columns_of(lay_out(sources, False), graph)
    normed = model.parts.blocks[layer].norm_1(model.seen.streams[layer], model.seen.held[layer].norm_1)
    q, k = queries_and_keys(attention, normed)
    scale = score_scale(attention, q.shape[-1])
    scores = (q[0, head, query] * k[0, head]).sum(-1) * scale
    at_query = torch.zeros(P, dtype=sources.like.dtype)
    at_query[query] = 1.0
    contrast = torch.full((P,), -1.0 / P, dtype=sources.like.dtype)
    contrast[key] += 1.0
    n = len(graph.nodes)
    sides = []
    for which, weights in ((0, at_query), (1, contrast)):
        found = _channels(model, layer, head, which, weights.to(sources.like)).cpu()
        sides.append(found.new_zeros(len(found), n).index_add_(1, columns, found))
    pairs = sides[0].T @ sides[1] * scale
    return HeadScore(layer, head, query, key, float(scores[key]), float(scores[key] - scores.mean()), pairs)


def _channels(model: ImageModel, layer: int, head: int, which: int, weights: Tensor) -> Tensor:
    """`(channels, sources)`: what every source adds to each channel of a head's queries (0) or keys (1).

    Args:
        weights: `(positions,)` of the positions that are summed.
    """
    block, sources = model.tower.blocks[layer], model.sources
    attention = block.part.attention
    d = attention.qkv.weight.shape[1]
    channels = d // attention.n_heads
    rows = slice(which * d + head * channels, which * d + (head + 1) * channels)
    weight = attention.qkv.weight[rows]
    bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
    normed = block.part.norm_1(model.seen.streams[layer], block.held.norm_1)[0]
    before = normed @ weight.T if bias is None else normed @ weight.T + bias
    maps, constant = _after(attention, attention.k_norm if which else attention.q_norm, before, head)
    # (channels, positions, channels before): gradients of each channel, weighted over positions
    by_before = maps * weights[:, None, None]
    gradient = block.part.norm_1.adjoint((by_before.permute(1, 0, 2) @ weight), block.held.norm_1)
    out = sources.like.new_zeros(channels, sources.n_columns)

    def entering(at: int) -> Tensor | None:
        return gradient if at == layer else None

    for step in model.tower.pull(layer, channels, entering=entering):
        sources.add(step, out)
    offset = torch.zeros_like(before) if bias is None else bias.expand_as(before).clone()
    if block.part.norm_1.bias is not None:
        offset = offset + weight @ block.part.norm_1.bias
    constants = torch.einsum("pij,pj->i", by_before, offset) + torch.einsum("p,pi->i", weights, constant)
    out[:, sources.bias_column(layer, 0)] += constants
    return out


def _after(attention: AttentionParts, norm: Norm | None, before: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """What happens to queries or keys after their projection, held: norm and rotation, as affine maps.

    Returns:
        `(positions, channels out, channels in)` and `(positions, channels)`.
    """
    P, c = before.shape
    eye = torch.eye(c, dtype=before.dtype, device=before.device)
    maps = eye.expand(P, c, c)
    constant = torch.zeros_like(before)
    if norm is not None:
        scale = norm.scale(before)  # (P, 1)
        maps = norm.linear(eye.expand(P, c, c), scale[:, None]).transpose(1, 2)
        if norm.bias is not None:
            constant = norm.bias.expand(P, c)
    if attention.rope is not None:
        rope, heads = attention.rope, attention.n_heads

        def turn(x: Tensor) -> Tensor:
            """`(some, positions, channels)`, as this head's."""
            return rope(x[:, None].expand(-1, heads, -1, -1))[:, head]

        maps = turn(maps.permute(2, 0, 1)).permute(1, 2, 0)
        constant = turn(constant[None])[0]
    return maps, constant

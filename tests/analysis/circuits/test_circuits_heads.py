"""Edges over heads and scores over pairs of nodes: both sums are exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.forward import see
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.heads import head_table, split_by_heads
from clt_lightning.analysis.circuits.image_model import ImageModel, model_of_image
from clt_lightning.analysis.circuits.queries import explain_score
from clt_lightning.core.errors import UserError
from tests.analysis import world
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of

F64 = torch.float64


def both(
    tower: str = "plain", topology: str = "cross_layer", skip: str | None = None, **options: int
) -> tuple[ImageModel, Graph]:
    clip, clt = clip_of(tower), clt_of(topology=topology, skip=skip is not None)
    kind = skip or "node"
    graph = attribute(clip, clt, an_image(), a_target(), skip=kind, dtype=F64, **options)  # type: ignore[arg-type]
    return model_of_image(clip, clt, an_image(), F64, kind), graph  # type: ignore[arg-type]


CASES = [
    ("plain", "cross_layer", None),
    ("plain", "cross_layer", "node"),
    ("plain", "cross_layer", "through"),
    ("plain", "sae", None),
    ("norm_former", "per_layer", None),
    ("qk_norm", "cross_layer", None),
    ("norm_after_average", "cross_layer", None),
]


@pytest.mark.parametrize(("tower", "topology", "skip"), CASES)
def test_heads_sum_to_the_edges(tower: str, topology: str, skip: str | None) -> None:
    model, graph = both(tower, topology, skip)
    dense = graph.edges.dense()
    features = graph.nodes.of("feature").nonzero().flatten().tolist()
    for node in [*features[:: max(1, len(features) // 7)], len(graph.nodes) - 1]:
        split = split_by_heads(model, graph, node)
        torch.testing.assert_close(split.total, dense[node], rtol=0, atol=1e-10)
        # heads above what the node reads carry nothing
        layer = graph.nodes[node].layer
        if layer >= 0:
            assert not bool(split.heads[layer + 1 :].any())
            assert bool(split.heads[layer].any())
            here = graph.nodes.position == graph.nodes[node].position
            elsewhere = ~here & (graph.nodes.position >= 0)
            assert not bool(split.direct[elsewhere].any())
    table = head_table(model, graph, graph.top(3))
    assert table.shape == (world.LAYERS, 2)
    assert bool((table >= 0).all())


def test_one_head_is_what_is_lost_without_it() -> None:
    """Against a forward of the held tower in which one head of one layer writes nothing, read by a feature there."""
    model, graph = both()
    node = next(n for n in graph.nodes if n.kind == "feature" and n.layer == 2)
    split = split_by_heads(model, graph, node.index)
    block, clt = model.tower.blocks[2], model.clt
    attention = block.part.attention
    stream = model.seen.streams[2]
    for head in range(2):
        with_bias = block.attend(stream)
        mask = torch.ones(2, dtype=F64)
        mask[head] = 0
        bare = replace(block.part, attention=replace(attention, head_scale=mask))
        lost = with_bias - type(block)(bare, block.held).attend(stream)
        # the constant of the values goes through the head as well, but belongs to none
        zero = torch.zeros_like(stream)
        lost = lost - (block.attend(zero) - type(block)(bare, block.held).attend(zero))
        x = block.part.norm_2.linear(lost, block.held.norm_2)[0, node.position]
        expected = float((x * clt.x_scale[2].double()) @ clt.W_enc[2][node.feature].detach().double())
        assert float(split.table()[2, head]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("tower", "topology", "skip"), CASES)
def test_pairs_sum_to_the_score(tower: str, topology: str, skip: str | None) -> None:
    model, graph = both(tower, topology, skip)
    for layer, head, query, key in ((0, 1, 0, 3), (1, 0, 2, 0), (2, 1, 0, 9)):
        found = explain_score(model, graph, layer, head, query, key)
        assert float(found.pairs.sum()) == pytest.approx(found.contrast, abs=1e-10)
        assert float(found.by_query().sum()) == pytest.approx(found.contrast, abs=1e-10)
        assert float(found.by_key().sum()) == pytest.approx(found.contrast, abs=1e-10)
        # the pattern is the softmax of scores: contrasts of all keys give it back
        all_of = [explain_score(model, graph, layer, head, query, k).contrast for k in range(world.POSITIONS)]
        pattern = torch.tensor(all_of, dtype=F64).softmax(0)
        torch.testing.assert_close(pattern, model.seen.held[layer].pattern[0, head, query])
        # nothing that comes later is read
        later = graph.nodes.of("feature") & (graph.nodes.layer >= layer)
        assert not bool(found.pairs[later].any())
        assert not bool(found.pairs[:, later].any())


def test_rotated_queries_and_keys() -> None:
    """A made rotation by position, as in rotary embeddings: pairs still sum to the score."""
    model, _ = both()
    turns = torch.arange(world.POSITIONS).double()[:, None] * torch.linspace(0.1, 1.0, 8).double()

    def rope(x: Tensor) -> Tensor:
        a, b = x[..., :8], x[..., 8:]
        return torch.cat([a * turns.cos() - b * turns.sin(), a * turns.sin() + b * turns.cos()], -1)

    blocks = [replace(b, attention=replace(b.attention, rope=rope)) for b in model.parts.blocks]
    parts = replace(model.parts, blocks=blocks)
    turned = ImageModel(model.clip, model.clt, model.image, parts, see(parts, parts.embed(model.image)), "node")

    class Backbone:
        image_size, n_layers, d_model, name = world.SIZE, world.LAYERS, world.WIDTH, "made"
        device = torch.device("cpu")

        def circuit_parts(self) -> object:
            return parts

    graph = attribute(Backbone(), model.clt, an_image(), a_target(), dtype=F64)
    found = explain_score(turned, graph, 1, 0, 2, 5)
    assert float(found.pairs.sum()) == pytest.approx(found.contrast, abs=1e-10)
    plain = explain_score(*both(), 1, 0, 2, 5)
    assert abs(found.contrast - plain.contrast) > 1e-3


def test_mistakes_are_told() -> None:
    model, graph = both()
    bias = int(graph.nodes.of("bias").nonzero()[0])
    with pytest.raises(UserError, match="no edges into it"):
        split_by_heads(model, graph, bias)
    with pytest.raises(UserError, match="not pruned"):
        split_by_heads(model, graph.prune(), 0)
    with pytest.raises(UserError, match=r"no head 7: they are 0\.\.1"):
        explain_score(model, graph, 0, 7, 0, 0)
    with pytest.raises(UserError, match="no layer 3"):
        explain_score(model, graph, 3, 0, 0, 0)
    other = model_of_image(model.clip, model.clt, an_image(5), F64)
    with pytest.raises(UserError, match="another image"):
        split_by_heads(other, graph, 0)

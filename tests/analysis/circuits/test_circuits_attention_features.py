"""Features of what attention adds as nodes: books that add up, against the split over heads and against autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import clt_lightning as cl
from clt_lightning.analysis.circuits import attribute, attribute_with_attention, model_of_image, split_by_heads
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.nodes import BIASES
from clt_lightning.core.sites import SiteName
from tests.analysis import world
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of
from tests.analysis.circuits.residual_world import sae_of

F64 = torch.float64
CASES = [
    ("plain", "TopK", "cross_layer", True, "node", "layer"),
    ("plain", "BatchTopK", "cross_layer", True, "through", "token"),
    ("layer_scale", "JumpReLU", "per_layer", False, "node", "token"),
    ("norm_former", "ReLU", "sae", False, "node", "layer"),
    ("average_pool", "AbsTopK", "cross_layer", False, "node", "token"),
]


def made(
    case: tuple[str, str, str, bool, str, str], seed: int = 0, site: SiteName = "attn_out"
) -> tuple[ImageModel, Graph, Graph]:
    tower, activation, topology, skip, way, normalize = case
    clip, clt = clip_of(tower), clt_of(activation, topology, skip)
    sae = sae_of("TopK", normalize, site=site)
    targets = [a_target(0, "one"), a_target(1, "two")]
    options = {"skip": way, "dtype": F64}
    graph = attribute_with_attention(clip, clt, sae, an_image(seed), targets, **options)  # type: ignore[arg-type]
    without = attribute(clip, clt, an_image(seed), targets, **options)  # type: ignore[arg-type]
    return model_of_image(clip, clt, an_image(seed), F64, way), graph, without  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "site"), [*((case, "attn_out") for case in CASES), *((case, "attn_z") for case in CASES[:3])]
)
def test_books_add_up(case: tuple[str, str, str, bool, str, str], site: SiteName) -> None:
    _, graph, without = made(case, site=site)
    nodes = graph.nodes
    explained = nodes.of("feature", "attention", "target")
    torch.testing.assert_close(graph.edges.inputs()[explained], nodes.activation[explained], atol=1e-10, rtol=0)
    # the same features and values as in the graph without attention's nodes
    for kind in ("feature", "target"):
        mine, theirs = nodes.of(kind), without.nodes.of(kind)
        torch.testing.assert_close(nodes.activation[mine], without.nodes.activation[theirs], atol=1e-12, rtol=0)
        assert torch.equal(nodes.feature[mine], without.nodes.feature[theirs])
    assert int(nodes.of("attention").sum()) > 20
    assert float(graph.edges.weight[nodes.of("attention")[graph.edges.source]].abs().max()) > 1e-3


@pytest.mark.parametrize("site", ["attn_out", "attn_z"])
def test_codes_are_the_autoencoder_s_own(site: SiteName) -> None:
    model, graph, _ = made(CASES[2], site=site)
    sae = sae_of("TopK", "token", site=site)
    read = model.clip.read(an_image().float()[None], site)[site]
    codes = sae.encode(read).dense().detach()
    nodes = graph.nodes
    for node in (node for node in nodes if node.kind == "attention"):
        assert node.activation == pytest.approx(float(codes[node.layer, node.position, node.feature]), abs=1e-4)
    # at the last layer those that the read-out sees alone
    assert int(nodes.of("attention").sum()) == int((codes[:-1] != 0).sum()) + int((codes[-1, 0] != 0).sum())


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_a_layer_s_attention_nodes_are_its_heads_together(case: tuple[str, str, str, bool, str, str]) -> None:
    model, graph, without = made(case)
    nodes, dense = graph.nodes, graph.edges.dense()
    number = {(n.kind, n.layer, n.position, n.feature): n.index for n in nodes}
    for index in [*without.top(3), int(without.nodes.of("target").nonzero()[0])]:
        node = without.nodes[index]
        row = dense[number[node.kind, node.layer, node.position, node.feature]]
        split = split_by_heads(model, without, index)
        constants = without.nodes.of("bias") & (without.nodes.feature == BIASES.index("attention"))
        for layer in range(world.LAYERS):
            here = nodes.of("attention", "attention_error") | (
                nodes.of("bias") & (nodes.feature == BIASES.index("attention"))
            )
            mine = row[here & (nodes.layer == layer)].sum()
            wanted = split.heads[layer].sum() + split.direct[constants & (without.nodes.layer == layer)].sum()
            assert float(mine) == pytest.approx(float(wanted), abs=1e-10)
        # what crosses no attention is as it was
        for kind in ("feature", "error", "input"):
            mine_at, theirs = nodes.of(kind), without.nodes.of(kind)
            torch.testing.assert_close(row[mine_at], split.direct[theirs], atol=1e-10, rtol=0)


def test_predictions_follow_attention_s_features() -> None:
    """A change of an input feature reaches the target through attention's features, whose errors are held."""
    clip, clt = clip_of("plain"), clt_of("ReLU")
    sae = sae_of("ReLU", "layer", site="attn_out")
    graph = attribute_with_attention(clip, clt, sae, an_image(), a_target(), dtype=F64)
    chosen = graph.top(1, "attention")[0]
    said = graph.predict({chosen: -1.0}, "frozen")
    dense = graph.edges.dense()
    target = int(graph.nodes.of("target").nonzero()[0])
    has_code = graph.nodes.of("feature", "attention")
    W = torch.where(has_code[None], dense / graph.nodes.activation.clamp(min=1e-300), 0.0)
    W = torch.where(has_code[:, None], W, 0.0)
    change = torch.zeros(len(graph.nodes), dtype=F64)
    change[chosen] = -graph.nodes.activation[chosen]
    W[chosen] = 0
    total = torch.linalg.solve(torch.eye(len(W), dtype=F64) - W, change)
    wanted = (torch.where(has_code, dense[target] / graph.nodes.activation.clamp(min=1e-300), 0.0) * total).sum()
    assert float(said.targets[0]) == pytest.approx(float(wanted), abs=1e-9)
    assert abs(float(wanted)) > 1e-3


def test_pruning_and_files(tmp_path: Path) -> None:
    _, graph, _ = made(CASES[0])
    pruned = graph.prune(0.7, 0.95)
    assert 0 < int(pruned.nodes.of("attention").sum()) < int(graph.nodes.of("attention").sum())
    again = Graph.from_json(pruned.to_json(tmp_path / "graph.json"))
    assert [node.name for node in again.nodes] == [node.name for node in pruned.nodes]
    assert any(node.name.startswith(("attention 0/", "attention 1/", "attention 2/")) for node in again.nodes)
    assert sum(graph.scores.ends.values()) == pytest.approx(1)
    assert graph.scores.ends["attention_error"] > 0


def test_what_cannot_be() -> None:
    clip, clt = clip_of("plain"), clt_of()
    target = a_target()
    with pytest.raises(cl.UserError, match=r"at attn_out of all 3 blocks.*'sae' at resid_post.*attention\.yaml"):
        attribute_with_attention(clip, clt, sae_of(), an_image(), target)
    with pytest.raises(cl.UserError, match="attn_out of 2"):
        attribute_with_attention(clip, clt, sae_of(layers=[0, 1], site="attn_out"), an_image(), target)
    with pytest.raises(cl.UserError, match="no sum over heads"):
        made(CASES[3], site="attn_z")  # a norm stands behind the projection
    with pytest.raises(cl.UserError, match=r"features are active.*raise max_nodes \(10\)"):
        attribute_with_attention(clip, clt, sae_of(site="attn_out"), an_image(), target, max_nodes=10)

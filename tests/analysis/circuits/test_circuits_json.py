"""Graphs as files: circuit-tracer's schema with its traps, and back again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.interchange import cantor, node_id
from clt_lightning.analysis.circuits.nodes import BIASES, Node, make_nodes
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of

NODE_FIELDS = {
    *("node_id", "feature", "layer", "ctx_idx", "feature_type", "token_prob", "is_target_logit", "run_idx"),
    *("reverse_ctx_idx", "jsNodeId", "clerp", "influence", "activation"),
}


def a_graph(summed: bool = False, skip: bool = True) -> Graph:
    targets = [a_target(0, 'a "red" car - dog'), Target("cat", a_target(1).direction, 2.0)]
    return attribute(
        clip_of("plain"),
        clt_of("ReLU", skip=skip),
        an_image(),
        targets,
        weights=[0.25, 0.75],
        positions="summed" if summed else "each",
        dtype=torch.float64,
        about={"key": "made/0001"},
    )


def frontend(content: dict[str, Any]) -> None:
    """What circuit-tracer's page does with a graph on opening it, where it throws if something is missing."""
    meta = content["metadata"]
    assert {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold", "schema_version"} <= set(
        meta
    )
    assert all(isinstance(token, str) for token in meta["prompt_tokens"])
    assert set(content["qParams"]) >= {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    ids = [node["node_id"] for node in content["nodes"]]
    assert len(set(ids)) == len(ids)
    assert len({node["jsNodeId"] for node in content["nodes"]}) == len(ids)
    for node in content["nodes"]:
        assert set(node) >= NODE_FIELDS
        assert isinstance(node["layer"], str)
        assert 0 <= node["ctx_idx"] < len(meta["prompt_tokens"])
        assert 0 <= node["influence"] <= 1 + 1e-9
        if node["feature_type"] == "logit":
            word = node["clerp"].split('"')[1]
            chance = node["clerp"].split("(p=")[1].split(")")[0]
            assert len(node["clerp"].split('"')) == 3
            assert word
            assert float(chance) == pytest.approx(node["token_prob"], abs=1e-3)
    for link in content["links"]:
        assert {link["source"], link["target"]} <= set(ids)
        assert link["weight"] != 0
    assert set(content["qParams"]["pinnedIds"]) <= set(ids)


@pytest.mark.parametrize("summed", [False, True])
def test_the_file_is_what_the_frontend_reads(tmp_path: Path, summed: bool) -> None:
    graph = a_graph(summed)
    for one, name in ((graph, "whole"), (graph.prune(), "pruned")):
        path = one.to_json(tmp_path / f"{name}.json")
        content = json.loads(path.read_text())
        frontend(content)
        assert content["metadata"]["slug"] == name
        assert [n["token_prob"] for n in content["nodes"] if n["feature_type"] == "logit"] == [0.25, 0.75]
        assert sum(n["is_target_logit"] for n in content["nodes"]) == 1
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [entry["slug"] for entry in listed] == ["whole", "pruned"]
    graph.to_json(tmp_path / "whole.json")
    assert len(json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]) == 2


def test_errors_and_features_of_one_number_have_names_of_their_own(tmp_path: Path) -> None:
    """Peers would call the error of layer 1 and feature 1 of layer 0 the same."""
    graph = a_graph()
    assert any(n.kind == "feature" and n.layer == 0 and n.feature in (1, 2) for n in graph.nodes)
    content = json.loads(graph.to_json(tmp_path / "g.json").read_text())
    frontend(content)
    for node, entry in zip(graph.nodes, content["nodes"]):
        if node.kind == "feature":
            assert entry["node_id"] == f"{node.layer}_{node.feature}_{node.position}"
            assert entry["feature"] == cantor(node.layer, node.feature)
            assert (entry["layer_number"], entry["index_in_layer"]) == (node.layer, node.feature)


def peers_name(node: Node) -> str:
    """What circuit-tracer calls features, errors and inputs."""
    return f"0_{node.layer}_{node.position}" if node.kind == "error" else f"{node.layer}_{node.feature}_{node.position}"


@pytest.mark.parametrize("n_layers", [1, 4, 13])
def test_names_collide_under_the_peers_rule_and_not_under_ours(n_layers: int) -> None:
    """Every kind at every layer and place, features whose numbers are those of layers, positions and one another."""
    positions = (-1, 0, 1, 10, 11)
    features = (0, 1, 2, 3, 10, 11, 12, 13, 110, 111, 24_575)
    whole = [(layer, position) for layer in range(n_layers) for position in positions]
    with_feature = [(layer, position, feature) for layer, position in whole for feature in features]
    parts: list[Any] = [(kind, with_feature) for kind in ("feature", "attention")]
    parts += [(kind, [(*place, -1) for place in whole]) for kind in ("rest", "error", "skip", "attention_error")]
    parts += [("input", [(-1, position, -1) for position in positions])]
    parts += [("target", [(-1, -1, n) for n in range(11)])]
    parts += [("bias", [(layer, -1, n) for layer in (-1, *range(n_layers)) for n in range(len(BIASES))])]
    table = make_nodes(
        [(kind, *torch.tensor(rows).T, None) for kind, rows in parts],
        [str(n) for n in range(12)],
        [f"target {n}" for n in range(11)],
    )
    names = [node_id(node, n_layers) for node in table]
    assert len(set(names)) == len(names) == len(table)
    theirs = [peers_name(node) for node in table if node.kind in ("feature", "error")]
    assert len(set(theirs)) < len(theirs), "the case that collides"
    # such a pair: feature 0 of layer 0 and the error of layer 0
    first = next(node for node in table if (node.kind, node.layer, node.feature) == ("feature", 0, 0))
    assert peers_name(first) == peers_name(next(node for node in table if node.kind == "error"))


def test_cantor_pairs_are_told_apart() -> None:
    assert cantor(0, 0) == 0
    assert cantor(1, 2) == 8
    numbers = [0, 1, 2, 3, 47, 48, 767, 6143, 6144, 131_070, 131_071]
    pairs = [(layer, feature) for layer in range(48) for feature in numbers]
    paired = [cantor(*pair) for pair in pairs]
    assert len(set(paired)) == len(pairs)
    # layer and feature swapped, or with one sum: neighbours, never the same
    assert cantor(3, 5) != cantor(5, 3)
    assert sorted(cantor(8 - n, n) for n in range(9)) == list(range(36, 45))
    for (layer, feature), z in zip(pairs, paired, strict=True):
        # as a page in JavaScript takes them apart, in float64
        diagonal = math.floor((math.sqrt(8.0 * z + 1) - 1) / 2)
        found = z - diagonal * (diagonal + 1) // 2
        assert (diagonal - found, found) == (layer, feature)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_graph_comes_back_whole(tmp_path: Path, summed: bool, pruned: bool) -> None:
    graph = a_graph(summed, skip=False)
    graph = graph.prune() if pruned else graph
    back = Graph.from_json(graph.to_json(tmp_path / "g.json"))
    for name in ("kind", "layer", "position", "feature", "activation", "influence"):
        assert torch.equal(getattr(back.nodes, name), getattr(graph.nodes, name)), name
    for name in ("source", "target", "weight"):
        assert torch.equal(getattr(back.edges, name), getattr(graph.edges, name)), name
    assert [n.name for n in back.nodes] == [n.name for n in graph.nodes]
    assert back.scores == graph.scores
    assert (back.summed, back.skip, back.pruned) == (graph.summed, graph.skip, graph.pruned)
    assert [t.name for t in back.targets] == [t.name for t in graph.targets]
    torch.testing.assert_close(back.tangent, graph.tangent)
    if not summed and not pruned:
        torch.testing.assert_close(back.predict({0: -1.0}).targets, graph.predict({0: -1.0}).targets)


def test_other_files_are_told(tmp_path: Path) -> None:
    path = a_graph(skip=False).to_json(tmp_path / "g.json")
    content = json.loads(path.read_text())

    def changed(edit: Any) -> Path:
        copy = json.loads(json.dumps(content))
        edit(copy)
        (tmp_path / "other.json").write_text(json.dumps(copy))
        return tmp_path / "other.json"

    for edit, message in (
        (lambda c: c.pop("nodes"), "no graph: it holds metadata, nodes and links"),
        (lambda c: c["metadata"].pop("clt_lightning"), "a graph of another tool"),
        (lambda c: c["metadata"]["clt_lightning"].update(format=9), "format 9"),
        (lambda c: c["nodes"][0].pop("kind"), "damaged graph: KeyError 'kind'"),
        (lambda c: c["links"][0].update(source="nobody"), "damaged graph: KeyError 'nobody'"),
    ):
        with pytest.raises(UserError, match=message):
            Graph.from_json(changed(edit))
    (tmp_path / "other.json").write_text("[")
    with pytest.raises(UserError, match=r"other\.json"):
        Graph.from_json(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"missing\.json"):
        Graph.from_json(tmp_path / "missing.json")

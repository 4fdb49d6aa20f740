"""The data of a circuit's page: which nodes and edges are kept, and that nothing of them changes on the way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clt_lightning.analysis.circuits.interchange import node_id
from clt_lightning.analysis.circuits.residual import residual_model
from clt_lightning.core.errors import UserError
from clt_lightning.report.circuit import EDGES, NODES, SHARE, circuit_of, pack_circuit, shown_edges, shown_nodes
from clt_lightning.report.existing import add_circuit, read_data
from clt_lightning.report.packing import unpack_column, unpack_maps
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of
from tests.analysis.circuits.residual_world import made_baseline, sae_of
from tests.report.made_circuits import make_graph


def test_the_most_influential_nodes_are_kept_and_every_edge_between_them() -> None:
    graph = make_graph(["a"], 3, 4, 17, 40)
    shown = shown_nodes(graph)
    table = graph.nodes
    assert set(table.of("target", "bias", "rest").nonzero().flatten().tolist()) <= set(shown.tolist())
    counted = table.of("feature", "error", "skip", "input")
    kept, left = (table.influence[counted & which] for which in _split(shown, len(table)))
    assert float(kept.min()) >= float(left.max())
    assert SHARE <= float(kept.sum() / table.influence[counted].sum()) < SHARE + 0.03
    edges = shown_edges(graph, shown)
    pairs = {(int(s), int(t)): float(w) for s, t, w in zip(edges.source, edges.target, edges.weight)}
    inside = {int(n): i for i, n in enumerate(shown.tolist())}
    wanted = {
        (inside[s], inside[t]): w
        for s, t, w in zip(graph.edges.source.tolist(), graph.edges.target.tolist(), graph.edges.weight.tolist())
        if s in inside and t in inside
    }
    assert len(pairs) == min(len(wanted), EDGES) > 1000
    assert pairs.items() <= wanted.items()


def test_a_large_graph_stays_within_its_bounds() -> None:
    graph = make_graph(["a", "b"], 5, 6, 17, 150)
    packed = pack_circuit(graph)
    kinds = unpack_column(packed["nodes"]["kind"])
    assert len(kinds) <= NODES + 6 + 7 + 2  # and what is left out of each layer, biases, targets
    assert len(unpack_column(packed["edges"]["weight"])) == EDGES
    assert len(json.dumps(packed)) < 300_000


def test_what_is_packed_is_the_graph() -> None:
    graph = make_graph(["a"], 1, 4, 17)
    packed = pack_circuit(graph)
    shown = shown_nodes(graph)
    nodes = {name: unpack_column(text) for name, text in packed["nodes"].items()}
    for name in ("layer", "position", "feature"):
        assert nodes[name].tolist() == getattr(graph.nodes, name)[shown].tolist()
    torch.testing.assert_close(torch.tensor(nodes["activation"]).double(), graph.nodes.activation[shown])
    inputs = torch.tensor(unpack_column(packed["inputs"])).double()
    torch.testing.assert_close(inputs, graph.edges.inputs()[shown], rtol=1e-6, atol=1e-6)
    ids = [node_id(node, 4) for node in graph.nodes]
    assert len(set(ids)) == len(ids)


def test_a_circuit_is_added_to_a_report_and_replaces_its_like(tmp_path: Path) -> None:
    def found(name: str, seed: int) -> dict[str, object]:
        return {"key": "0/7", "circuits": [pack_circuit(make_graph([name], seed, 4, 17))]}

    (tmp_path / "data").mkdir()
    assert add_circuit(tmp_path, 7, found("a", 1)) == "#/circuit/7"
    assert add_circuit(tmp_path, 7, found("b", 2)) == "#/circuit/7?target=1"
    assert add_circuit(tmp_path, 3, found("c", 3)) == "#/circuit/3"
    again = found("a", 4)
    assert add_circuit(tmp_path, 7, again) == "#/circuit/7"
    assert read_data(tmp_path, "circuits") == {
        "images": [{"image": 3, "targets": ["c"]}, {"image": 7, "targets": ["a", "b"]}]
    }
    kept = read_data(tmp_path, "circuits/00007")
    assert kept["circuits"][0] == json.loads(json.dumps(again["circuits"]))[0]
    for n in range(10):
        add_circuit(tmp_path, 7, found(f"x{n}", 1))
    with pytest.raises(UserError, match="12 circuits already"):
        add_circuit(tmp_path, 7, found("one more", 1))


def test_a_circuit_of_the_residual_stream_has_its_codes_over_the_image() -> None:
    clip, sae = clip_of("plain"), sae_of()
    run: Any = SimpleNamespace(clip=clip, transcoder=sae)
    packed = circuit_of(run, an_image(), a_target(), made_baseline(clip, sae))
    assert (packed["units"], packed["summed"]) == ("target", True)
    assert (packed["heads"], packed["responses"]) == (None, None)
    assert set(unpack_column(packed["nodes"]["position"])[unpack_column(packed["nodes"]["kind"]) == 0]) == {-1}
    codes = residual_model(clip, sae, an_image()).codes
    layer, feature, peaks = (unpack_column(packed["maps"][name]) for name in ("layer", "feature", "peaks"))
    assert len(layer) > 20
    wanted = np.stack([codes[n][:, f].numpy() for n, f in zip(layer, feature)])
    np.testing.assert_allclose(peaks, np.abs(wanted).max(1), rtol=1e-5)
    np.testing.assert_allclose(unpack_maps(packed["maps"]["maps"], peaks, 10), wanted, atol=2e-5 * wanted.max())


def _split(shown: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    inside = torch.zeros(n, dtype=torch.bool).index_fill(0, shown, True)
    return inside, ~inside

"""Circuits with the model behind them: what the page predicts, what the model answers, and what may not be asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clt_lightning.analysis.circuits import NodeEdit, NodeSet, attribute, intervene, model_of_image, split_by_heads
from clt_lightning.analysis.target import Target
from clt_lightning.report.circuit import shown_nodes
from clt_lightning.report.existing import read_data
from clt_lightning.report.packing import unpack_column, unpack_numbers
from tests.report.browser import Browser
from tests.server.conftest import FEATURES, Served
from tests.server.test_serve_browser import browser, tab  # noqa: F401

NAME = "{} - {}"


@pytest.fixture(scope="module")
def shown(served: Served) -> tuple[int, dict[str, Any]]:
    number = read_data(served.run / "report", "circuits")["images"][0]["image"]
    return number, read_data(served.run / "report", f"circuits/{number:05d}")


def columns(circuit: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: unpack_column(text) for name, text in circuit["nodes"].items()}


def predicted(circuit: dict[str, Any], factors: dict[int, float]) -> np.ndarray:
    """The page's arithmetic once more: nodes by number, each with its factor."""
    nodes, responses = columns(circuit), circuit["responses"]
    chosen = unpack_column(responses["nodes"]).tolist()
    layers, features = nodes["layer"][chosen], nodes["kind"][chosen] == 0
    reaches = (layers[:, None] < layers[None, :]) & features[None, :]
    answer = np.zeros(reaches.shape)
    answer[reaches] = -unpack_numbers(responses["codes"], (-1,))
    targets = unpack_column(responses["targets"]).reshape(len(chosen), -1).astype(np.float64)
    impulse: dict[int, float] = {}
    for node in sorted(factors, key=lambda node: nodes["layer"][node]):
        i = chosen.index(node)
        impulse[i] = factors[node] - 1 - sum(answer[j, i] * u for j, u in impulse.items())
    found: np.ndarray = -np.sum([u * targets[i] for i, u in impulse.items()], 0)
    return found


def test_predictions_of_any_set_are_those_of_the_tangent_tower(served: Served, shown: tuple[int, Any]) -> None:
    _, data = shown
    circuit = data["circuits"][0]
    run = served.session.run
    image = run.images([data["key"]])[data["key"]]
    target = Target.parse(served.session.head, served.session.classnames, circuit["targets"][0], run.clip.logit_scale)
    nodes = columns(circuit)
    can = np.flatnonzero(np.isin(nodes["kind"], [0, 2]))
    generator = np.random.default_rng(0)
    sets, mine = [], []
    for size, factor in ((1, 0.0), (2, 0.0), (6, 0.0), (12, 2.0), (25, 0.5), (len(can), 0.0)):
        some = generator.choice(can, min(size, len(can)), replace=False).tolist()
        edits = [
            NodeEdit(
                int(nodes["layer"][i]),
                int(nodes["feature"][i]) if nodes["kind"][i] == 0 else None,
                int(nodes["position"][i]),
                "feature" if nodes["kind"][i] == 0 else "error",
                "scale",
                factor,
            )
            for i in some
        ]
        sets.append(NodeSet(tuple(edits)))
        mine.append(predicted(circuit, dict.fromkeys(some, factor))[0])
    found = intervene(run.clip, run.transcoder, image, sets, "live", target=target, codes=False)
    wanted = found.predicted["tower"][:, 0].numpy()
    # codes are packed in 16 bits
    np.testing.assert_allclose(mine, wanted, rtol=2e-3, atol=2e-3 * float(np.abs(wanted).max()))
    status, answer = served.post("pick", {"key": data["key"]})
    asked = {"image": answer["image"], "targets": circuit["targets"], "sets": [one.to_json() for one in sets]}
    status, answer = served.post("intervene", asked)
    assert status == 200
    np.testing.assert_allclose(answer["observed"], found.observed.numpy(), atol=1e-4)
    np.testing.assert_allclose(answer["predicted"], found.predicted["moved"].numpy(), atol=1e-4)
    assert len(answer["top"]) == len(answer["probability"]) == len(sets)


def test_edges_and_heads_are_the_graphs(served: Served, shown: tuple[int, Any]) -> None:
    _, data = shown
    circuit, run = data["circuits"][0], served.session.run
    image = run.images([data["key"]])[data["key"]]
    target = Target.parse(served.session.head, served.session.classnames, circuit["targets"][0], run.clip.logit_scale)
    graph = attribute(run.clip, run.transcoder, image, target)
    kept = shown_nodes(graph)
    model = model_of_image(run.clip, run.transcoder, image)
    source, end = (unpack_column(circuit["edges"][name]) for name in ("source", "target"))
    heads = circuit["heads"]
    edges, direct = unpack_column(heads["edge"]), unpack_column(heads["direct"])
    reader = heads["readers"][-1]
    split = split_by_heads(model, graph, int(kept[reader]))
    mine = np.flatnonzero(end[edges] == reader)
    assert len(mine) > 5
    sources = kept[torch.from_numpy(source[edges[mine]].astype(np.int64))]
    np.testing.assert_allclose(direct[mine], split.direct[sources].numpy(), atol=1e-5)
    head = unpack_column(heads["head"]).reshape(-1, heads["kept"])[mine]
    value = unpack_column(heads["value"]).reshape(-1, heads["kept"])[mine]
    parts = split.heads.flatten(0, 1)[:, sources].T.numpy()
    np.testing.assert_allclose(value, np.take_along_axis(parts, head.astype(np.int64), 1), atol=1e-5)
    assert (np.abs(value).min(1) >= np.sort(np.abs(parts), 1)[:, -heads["kept"]] - 1e-5).all()


def test_what_may_not_be_asked(served: Served) -> None:
    name = served.session.classnames[0]
    _, opened = served.post("pick", {"key": served.session.keys[0]})
    one = NodeSet.features([(0, 1, 2)]).to_json()
    good = {"image": opened["image"], "sets": [one], "targets": [name]}
    assert served.post("intervene", good)[0] == 200
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"image": "999"}, "no longer at hand"),
        ({"sets": []}, "list of at most"),
        ({"sets": [one] * 65}, "at most 64"),
        ({"sets": [7]}, "sets of nodes"),
        ({"sets": [{"nodes": [{"layer": 9, "feature": 1}]}]}, "no layer 9"),
        ({"sets": [{"nodes": [{"layer": 0, "feature": FEATURES}]}]}, "no feature"),
        ({"sets": [{"nodes": [{"layer": 0, "feature": 1, "value": 1e999}]}]}, "finite"),
        ({"sets": [{"nodes": [{"layer": 0, "feature": n, "position": 1} for n in range(600)]}]}, "at most 512"),
        ({"sets": [{"nodes": []}]}, "empty"),
        ({"targets": []}, "at most 10 names"),
        ({"targets": ["no such class"]}, "no class"),
        ({"targets": [7]}, "names"),
    ]
    for change, words in wrong:
        status, answer = served.post("intervene", good | change)
        assert status == 400, change
        assert words in answer["error"], (change, answer)
    assert served.post("intervene", good, token="")[0] == 403


def test_the_page_asks_the_model(served: Served, shown: tuple[int, Any], browser: Browser) -> None:  # noqa: F811
    number, data = shown
    circuit = data["circuits"][0]
    nodes = columns(circuit)
    features = np.flatnonzero(nodes["kind"] == 0)
    best = features[np.argsort(-nodes["influence"][features])[:3]]
    ids = [f"{nodes['layer'][i]}_{nodes['feature'][i]}_{nodes['position'][i]}" for i in best]
    route = f"circuit/{number}?pinnedIds={','.join(ids)}"
    rows = "[...document.querySelectorAll('table.what tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    # from the disk: predictions alone, and how to ask the model
    browser.open(served.run / "report" / "index.html", route, "circuit")
    alone = browser.js(rows)
    assert [row[2] for row in alone] == ["–"] * 4
    wanted = [predicted(circuit, {int(i): 0.0})[0] for i in best] + [
        predicted(circuit, dict.fromkeys(best.tolist(), 0.0))[0]
    ]
    assert [_number(row[1]) for row in alone] == pytest.approx(wanted, abs=0.0051)
    browser.open(served.server.url, route, "circuit")
    browser.js("[...document.querySelectorAll('button')].find(b => b.textContent === 'Ask the model').click()")
    browser.wait("document.querySelectorAll('table.what thead th').length === 5")
    found = browser.js(rows)
    _, opened = served.post("pick", {"key": data["key"]})
    sets = [NodeSet.features([place(name)]) for name in ids]
    sets.append(NodeSet.features([place(name) for name in ids]))
    _, answer = served.post(
        "intervene", {"image": opened["image"], "sets": [s.to_json() for s in sets], "targets": circuit["targets"]}
    )
    assert [row[1] for row in found] == [row[1] for row in alone], "to first order, as before"
    for column, kind in ((2, "predicted"), (3, "observed")):
        assert [_number(row[column]) for row in found] == pytest.approx([row[0] for row in answer[kind]], abs=0.0051)
    assert found[0][4].startswith(served.session.classnames[answer["top"][0]])
    # heads of an edge are there without the model, too
    browser.open(served.run / "report" / "index.html", f"circuit/{number}?clickedId={ids[0]}&heads=1", "circuit")
    assert "head" in browser.js("document.querySelector('.nodecard').innerText")
    assert browser.errors() == []
    assert not [r for r in browser.requests() if r.startswith("http") and f":{served.port}/" not in r]


def place(name: str) -> tuple[int, int, int]:
    layer, feature, position = map(int, name.split("_"))
    return layer, feature, position


def _number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))

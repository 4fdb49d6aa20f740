"""Interventions: exact where everything is held, the library's own where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.intervention import Effects, intervene
from clt_lightning.analysis.circuits.nodeset import NodeEdit, NodeSet
from clt_lightning.analysis.effects import ablation_effects
from clt_lightning.analysis.steering import Edit, steered
from clt_lightning.analysis.tower import observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.analysis import world
from tests.analysis.circuits.circuit_world import ACTIVATIONS, a_target, an_image, clip_of, clt_of

F64 = torch.float64


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return clip_of("plain")


def graph_of(clip: FrozenCLIP, clt: CrossLayerTranscoder, **options: object) -> Graph:
    targets = [a_target(0, "one"), a_target(1, "two")]
    return attribute(clip, clt, an_image(), targets, skip="through", dtype=F64, **options)  # type: ignore[arg-type]


def run(clip: FrozenCLIP, clt: CrossLayerTranscoder, nodes: object, mode: str, **options: object) -> Effects:
    return intervene(clip, clt, an_image(), nodes, mode, dtype=F64, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer", "sae"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_held_interventions_are_predicted_exactly(clip: FrozenCLIP, activation: str, topology: str) -> None:
    """Single nodes and sets, zero, doubled and set, errors too: targets by both rows, and every other code."""
    clt = clt_of(activation, topology, skip=topology != "sae")
    graph = graph_of(clip, clt)
    top = graph.top(12)
    errors = graph.top(3, "error")
    code = float(graph.nodes[top[0]].activation)
    sets = [NodeSet.of_graph(graph, [i], "scale", value) for i, value in zip(top, [0.0, 2.0, -1.0] * 4)]
    sets += [
        NodeSet.of_graph(graph, top),
        NodeSet.of_graph(graph, errors),
        NodeSet.of_graph(graph, [*top[:4], *errors]),
    ]
    sets += [NodeSet.of_graph(graph, top[:1], "set", code + 1.5), NodeSet.features([(0, graph.nodes[top[0]].feature)])]
    found = run(clip, clt, sets, "frozen", graph=graph)
    torch.testing.assert_close(found.predicted["frozen"], found.observed, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.predicted["tangent"], found.tangent, rtol=0, atol=1e-10)
    assert float(found.observed.abs().max()) > 0.1
    assert found.changes is not None
    assert found.predicted_changes is not None
    known = ~found.predicted_changes.isnan()
    assert int(known[0].sum()) == int(graph.nodes.of("feature").sum())
    torch.testing.assert_close(found.predicted_changes[known], found.changes[known], rtol=0, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    chosen=st.lists(st.tuples(st.integers(0, 80), st.floats(-3, 3)), min_size=1, max_size=8, unique_by=lambda e: e[0])
)
def test_any_set_is_predicted_exactly(chosen: list[tuple[int, float]]) -> None:
    clip, clt, graph = _cached()
    edits = []
    for index, value in chosen:
        node = graph.nodes[index]
        edits.append(NodeEdit(node.layer, node.feature, node.position, "feature", "scale", value))
    found = run(clip, clt, NodeSet(tuple(edits)), "frozen", graph=graph)
    torch.testing.assert_close(found.predicted["frozen"], found.observed, rtol=0, atol=1e-9)


_CACHE: list[tuple[FrozenCLIP, CrossLayerTranscoder, Graph]] = []


def _cached() -> tuple[FrozenCLIP, CrossLayerTranscoder, Graph]:
    if not _CACHE:
        clip, clt = clip_of("plain"), clt_of("TopK", skip=True)
        _CACHE.append((clip, clt, graph_of(clip, clt)))
    return _CACHE[0]


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
def test_live_interventions_are_those_of_the_model(clip: FrozenCLIP, topology: str) -> None:
    """Single features against `ablation_effects`, sets against `steered`: both on open_clip's own forward."""
    clt = clt_of(topology=topology)
    image = an_image().float()[None]
    seen = observe(clip, image)
    graph = graph_of(clip, clt)
    target = graph.targets[0]
    for index in graph.top(6):
        node = graph.nodes[index]
        codes = torch.zeros(1, world.POSITIONS)
        codes[0, node.position] = float(node.activation)
        directions = (target.direction * target.scale / clip.logit_scale)[None, None]
        which, one = torch.tensor([node.feature]), torch.tensor([0])
        real = ablation_effects(clip, clt, node.layer, which, codes, seen, one, directions)
        found = run(clip, clt, [node], "live", target=target)
        assert float(found.observed[0, 0]) == pytest.approx(-float(real[0, 0]), rel=1e-3, abs=1e-3)
    everywhere = [(0, graph.nodes[graph.top(1)[0]].feature), (1, 3), (2, 7)]
    edits = [Edit(layer, feature, "set", 0.7) for layer, feature in everywhere]
    found = run(clip, clt, NodeSet.features(everywhere, "set", 0.7), "live", target=target)
    with steered(clip, clt, edits):
        after = target.value(clip.encode_image(image))
    before = target.value(clip.encode_image(image))
    assert float(found.before[0]) == pytest.approx(float(before[0]), abs=1e-4)
    assert float(found.observed[0, 0]) == pytest.approx(float(after[0] - before[0]), rel=1e-3, abs=1e-3)


def test_live_on_the_transcoder_is_the_replaced_model_with_errors_added(clip: FrozenCLIP) -> None:
    clt = clt_of(skip=True)
    nodes = NodeSet.features([(0, 3), (1, 5), (2, 7)], "set", 0.4)
    found = run(clip, clt, nodes, "live", target=a_target(), base="transcoder")
    image = an_image().float()[None]
    seen = observe(clip, image)
    errors = seen.y - clt.decode(clt.encode(seen.x), seen.x)

    def edit(layer: int, terms: Tensor) -> Tensor:
        codes = trace.codes[layer].dense_layer(0)
        feature = {0: 3, 1: 5, 2: 7}[layer]
        changes[layer] = 0.4 - codes[:, feature]
        for source in range(layer + 1):
            rows = clt.W_dec[source][{0: 3, 1: 5, 2: 7}[source], layer - source] * clt.y_scale[layer]
            terms[source] += changes[source][:, None] * rows
        terms[0] += errors[layer]
        return terms

    changes: dict[int, Tensor] = {}
    with torch.no_grad(), replaced(clip, clt, edit=edit) as trace:
        after = a_target().value(clip.encode_image(image))
    before = a_target().value(clip.encode_image(image))
    assert float(found.observed[0, 0]) == pytest.approx(float(after[0] - before[0]), rel=1e-3, abs=1e-3)


def test_nothing_changed_changes_nothing(clip: FrozenCLIP) -> None:
    for activation in ACTIVATIONS:
        clt = clt_of(activation, skip=True)
        graph = graph_of(clip, clt)
        same = NodeSet.of_graph(graph, graph.top(5), "scale", 1.0)
        for mode in ("frozen", "reencoded", "live"):
            for base in ("original", "transcoder"):
                found = run(clip, clt, same, mode, graph=graph, base=base)
                assert float(found.observed.abs().max()) < 1e-9
                assert found.changes is not None
                assert float(found.changes.abs().max()) < 1e-9
                assert float(found.cosine[0]) == pytest.approx(1)


def test_small_changes_agree_in_all_modes_where_they_must(clip: FrozenCLIP) -> None:
    """Reencoding does not matter to a small change of ReLU codes; the tangent row is the live read-out's derivative."""
    clt = clt_of("ReLU")
    graph = graph_of(clip, clt)
    last = [i for i in graph.top(200) if graph.nodes[i].layer == world.LAYERS - 1][:3]
    little = [NodeSet.of_graph(graph, [i], "scale", 1 + 1e-6) for i in [*graph.top(3), *last]]
    frozen, again = (run(clip, clt, little, mode, graph=graph) for mode in ("frozen", "reencoded"))
    torch.testing.assert_close(frozen.observed, again.observed, rtol=1e-6, atol=1e-12)
    live = run(clip, clt, little[3:], "live", graph=graph)
    # nothing comes after the last layer but the read-out
    np.testing.assert_allclose(live.observed, live.predicted["tangent"], rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer", "sae"])
@pytest.mark.parametrize("tower", ["plain", "qk_norm", "norm_former", "norm_after_average"])
def test_the_tangent_tower_predicts_small_live_changes(tower: str, topology: str) -> None:
    """Of every node: with the transcoder in the MLPs' place nothing but first order is left to differ."""
    clip, clt = clip_of(tower), clt_of("ReLU", topology, skip=topology != "sae")
    graph = graph_of(clip, clt, tower="tangent")
    explained = graph.nodes.of("feature", "target")
    assert float((graph.edges.inputs() - graph.nodes.activation)[explained].abs().max()) < 1e-10
    chosen = [*graph.top(12), *graph.top(3, "error")]
    little = 1e-6
    up, down = ([NodeSet.of_graph(graph, [i], "scale", 1 + step) for i in chosen] for step in (little, -little))
    base = "transcoder"
    found = [run(clip, clt, sets, "live", graph=graph, base=base) for sets in (up, down)]
    observed = (found[0].observed - found[1].observed) / 2
    assert float(observed.abs().max()) > 1e-8
    torch.testing.assert_close(found[0].predicted["tangent"], observed, rtol=1e-4, atol=1e-12)
    assert found[0].changes is not None
    assert found[0].predicted_changes is not None
    known = ~found[0].predicted_changes.isnan()
    changes = (found[0].changes - found[1].changes)[known] / 2  # type: ignore[operator]
    torch.testing.assert_close(found[0].predicted_changes[known], changes, rtol=1e-4, atol=1e-11)


def test_codes_read_anew_are_the_transcoders(clip: FrozenCLIP) -> None:
    """With all held but codes, taking a feature away changes which others fire: TopK lets the next one in."""
    clt = clt_of("TopK")
    graph = graph_of(clip, clt)
    nodes = NodeSet.features([(0, f) for f in range(0, 20)])
    held, again = (run(clip, clt, nodes, mode, graph=graph) for mode in ("frozen", "reencoded"))
    assert not torch.allclose(held.observed, again.observed, atol=1e-3)
    assert again.changes is not None
    first = again.places[0] == 0
    taken = first & (again.places[2] < 20)
    torch.testing.assert_close(again.changes[0, taken], -again.codes[taken])
    assert not bool(again.changes[0, first & ~taken].any())


def test_error_and_bias_nodes(clip: FrozenCLIP) -> None:
    clt = clt_of()
    graph = graph_of(clip, clt)
    sets = [NodeSet((NodeEdit(1, kind="error"),)), NodeSet((NodeEdit(1, position=0, kind="error", value=3.0),))]
    sets += [NodeSet((NodeEdit(0, kind="bias", value=0.5),))]
    found = run(clip, clt, sets, "frozen", graph=graph)
    torch.testing.assert_close(found.predicted["frozen"], found.observed, rtol=0, atol=1e-10)
    live = run(clip, clt, sets, "live", graph=graph)
    image = an_image().float()[None]
    seen = observe(clip, image)
    errors = (seen.y - clt.decode(clt.encode(seen.x), seen.x)).detach()
    for row, (layer, change) in enumerate(((1, -errors[1]), (1, None), (0, -0.5 * clt.bias(0).detach()))):
        if change is None:
            change = torch.zeros_like(errors[1])
            change[0] = 2 * errors[1][0]

        def changed(_: int, x: Tensor, compute_y: Callable[[], Tensor], c: Tensor = change) -> Tensor:
            return compute_y() + c

        with torch.no_grad(), clip.mlp_override(changed, [layer]):
            after = graph.targets[0].value(clip.encode_image(image))
        before = graph.targets[0].value(clip.encode_image(image))
        assert float(live.observed[row, 0]) == pytest.approx(float(after[0] - before[0]), rel=1e-3, abs=1e-3)


def test_without_targets_codes_and_embedding_are_told(clip: FrozenCLIP) -> None:
    found = run(clip, clt_of(), NodeSet.features([(0, 3), (0, 8)], "set", 2.0), "live")
    assert found.observed.shape == (1, 0)
    assert float(found.cosine[0]) < 1
    assert found.changes is not None
    assert found.predicted == {}
    assert set(found.to_json()) >= {"mode", "sets", "observed"}


def test_sets_of_nodes_are_saved(tmp_path: Path) -> None:
    nodes = NodeSet((NodeEdit(2, 117, 5, "feature", "set", 3.5), NodeEdit(1, kind="error")), "wheels")
    nodes.to_json(tmp_path / "nodes.json")
    assert NodeSet.from_json(tmp_path / "nodes.json") == nodes
    assert NodeSet.from_json(nodes.to_json()) == nodes
    assert str(nodes.edits[0]) == "2/117 @5 = 3.5"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"feature": 3}, "node 0: expected a table with layer"),
        ({"layer": 0, "featur": 3}, "unknown key 'featur'"),
        ({"layer": "x", "feature": 3}, "layer must be a whole number"),
        ({"layer": True, "feature": 3}, "layer must be a whole number"),
        ({"layer": 0, "feature": 1.5}, "feature must be a whole number"),
        ({"layer": 0, "feature": 1, "value": "a"}, "value must be a number"),
        ({"layer": 9, "feature": 1}, r"no layer 9: layers are 0\.\.2"),
        ({"layer": 0, "feature": 99}, r"no feature 99: features are 0\.\.39"),
        ({"layer": 0}, "no feature None"),
        ({"layer": 0, "feature": 1, "position": 10}, r"no position 10: positions are 0\.\.9"),
        ({"layer": 0, "feature": 1, "action": "add"}, "set or scale, got 'add'"),
        ({"layer": 0, "feature": 1, "kind": "error"}, "has no feature"),
        ({"layer": 0, "kind": "error", "action": "set"}, "can be scaled, not set"),
        ({"layer": 0, "kind": "logit"}, "one of feature, error, bias"),
        ({"layer": 0, "feature": 1, "value": float("inf")}, "must be finite"),
    ],
)
def test_sets_that_cannot_be_are_told(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NodeSet.from_json({"nodes": [node]}).check(world.LAYERS, world.FEATURES, world.POSITIONS)


def test_mistakes_are_told(clip: FrozenCLIP, tmp_path: Path) -> None:
    NodeSet(()).to_json(tmp_path / "empty.json")
    clt = clt_of(skip=True)
    one = NodeSet.features([(0, 3, 0)])
    (tmp_path / "n.json").write_text('{"node": []}')
    for call, message in (
        (lambda: NodeSet.from_json(tmp_path / "n.json"), r"n\.json: no set of nodes"),
        (lambda: NodeSet.from_json({"nodes": []}), "set of nodes is empty"),
        (lambda: NodeSet.from_json(tmp_path / "empty.json"), r"empty\.json: the set of nodes is empty"),
        (lambda: run(clip, clt, [], "live"), "no nodes were given"),
        (lambda: run(clip, clt, NodeSet(()), "live"), "set of nodes is empty"),
        (lambda: run(clip, clt, [3], "live"), "NodeSet, several, or nodes of a graph"),
        (lambda: run(clip, clt, one, "alive"), "mode must be one of frozen, reencoded, live"),
        (lambda: run(clip, clt, one, "live", base="both"), "original or transcoder"),
        (lambda: run(clip, clt, NodeSet.features([(0, 3, 0), (0, 3)]), "live"), "in the set twice"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    graph = attribute(clip, clt, an_image(), a_target(), skip="node", dtype=F64)
    with pytest.raises(UserError, match="skip='through'"):
        run(clip, clt, one, "frozen", graph=graph)
    with pytest.raises(UserError, match="raise max_nodes"):
        run(clip, clt, one, "frozen", graph=graph_of(clip, clt, max_nodes=5))
    with pytest.raises(UserError, match="positions='each'"):
        run(clip, clt, one, "frozen", graph=graph_of(clip, clt, positions="summed"))
    with pytest.raises(UserError, match="cannot be changed"):
        NodeSet.of_graph(graph, [len(graph.nodes) - 1])
    silent = next(f for f in range(world.FEATURES) if graph_of(clip, clt).nodes.find(0, f, 0) is None)
    with pytest.raises(UserError, match="does not fire there"):
        run(clip, clt, NodeSet.features([(0, silent, 0)], "set", 1.0), "frozen", graph=graph_of(clip, clt))


@pytest.mark.parametrize("tower", ["plain", "qk_norm", "norm_former", "norm_after_average"])
@pytest.mark.parametrize(
    ("activation", "topology", "skip"),
    [("TopK", "cross_layer", True), ("BatchTopK", "per_layer", False), ("JumpReLU", "sae", False)],
)
def test_the_tower_s_derivative_is_its_graph(tower: str, activation: str, topology: str, skip: bool) -> None:
    """Forward-mode derivatives against `(I - W)^-1` of the tangent tower's graph: two ways to one number."""
    clip, clt = clip_of(tower), clt_of(activation, topology, skip)
    graph = graph_of(clip, clt, tower="tangent")
    top, errors = graph.top(10), graph.top(2, "error")
    sets = [NodeSet.of_graph(graph, [i], "scale", value) for i, value in zip(top, [0.0, 2.0] * 5)]
    sets += [NodeSet.of_graph(graph, top), NodeSet.of_graph(graph, [*top[:3], *errors], "scale", 0.5)]
    sets.append(NodeSet.of_graph(graph, top[:1], "set", 1.7))
    found = run(clip, clt, sets, "live", graph=graph)
    torch.testing.assert_close(found.predicted["tower"], found.predicted["tangent"], rtol=0, atol=1e-9)
    assert float(found.predicted["tower"].abs().max()) > 0.1
    alone = run(clip, clt, sets, "live", target=graph.targets)
    assert torch.equal(alone.predicted["tower"], found.predicted["tower"]), "no graph is needed"


def test_the_moved_tower_holds_what_is_beyond_first_order(clip: FrozenCLIP) -> None:
    clt = clt_of(skip=True)
    graph = graph_of(clip, clt)
    last = [i for i in graph.top(len(graph.nodes)) if graph.nodes[i].layer == world.LAYERS - 1][:3]
    top = graph.top(6)
    # behind the last layer lies the read-out alone: no gate could change, and the whole change is told exactly
    sets = [NodeSet.of_graph(graph, last), NodeSet.of_graph(graph, last, "scale", 3.0)]
    found = run(clip, clt, sets, "live", graph=graph)
    torch.testing.assert_close(found.predicted["moved"], found.observed, rtol=0, atol=1e-9)
    assert float((found.predicted["tower"] - found.observed).abs().min()) > 1e-3
    # of a small change both say the same, and so does the model of which they are
    little = 1e-5
    sets = [NodeSet.of_graph(graph, top, "scale", 1 - little), NodeSet.of_graph(graph, [top[0]], "scale", 1 - little)]
    found = run(clip, clt, sets, "live", target=graph.targets, base="transcoder")
    torch.testing.assert_close(found.predicted["moved"], found.observed, rtol=0, atol=1e-11)
    slopes = [found.predicted[name] / little for name in ("moved", "tower")]
    torch.testing.assert_close(*slopes, rtol=0, atol=2e-4)
    assert found.prediction is found.predicted["moved"]


def test_what_no_graph_predicts_the_tower_does(clip: FrozenCLIP) -> None:
    """A feature that does not fire, and one at all positions: small changes of the model itself."""
    clt = clt_of(skip=True)
    little = 1e-5
    sets = [
        NodeSet.features([(1, 7, 2)], "set", little),
        NodeSet.features([(0, 3)], "set", little),
        NodeSet((NodeEdit(1, None, None, "bias", "scale", 1 + little),)),
        NodeSet((NodeEdit(2, None, 0, "error", "scale", 1 - little),)),
    ]
    options = {"target": [a_target(0), a_target(1)], "base": "transcoder"}
    fires = run(clip, clt, sets, "live", **options)
    places = {tuple(place) for place in fires.places.T.tolist()}
    assert (1, 2, 7) not in places, "the first is of a feature that does not fire"
    # a code that fires at one of the positions is set to almost nothing: no small change
    one = [i for i in range(4) if i != 1 or not any(p[0] == 0 and p[2] == 3 for p in places)]
    torch.testing.assert_close(fires.predicted["tower"][one] / little, fires.observed[one] / little, rtol=0, atol=2e-3)
    held = run(clip, clt, sets, "frozen", **{"target": a_target(0)})
    assert held.predicted == {}
    assert held.prediction is None

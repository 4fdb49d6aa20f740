"""Graphs: edges against autograd's Jacobians, books that add up, influence by hand, pruning and scores as defined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clt_lightning.analysis.circuits.attribution import attribute, top_targets
from clt_lightning.analysis.circuits.edges import Edges
from clt_lightning.analysis.circuits.graph import Graph, with_influence
from clt_lightning.analysis.circuits.making import partial_influence
from clt_lightning.analysis.circuits.nodes import make_nodes
from clt_lightning.analysis.circuits.validation import validate
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from tests.analysis import world
from tests.analysis.circuits.circuit_world import ACTIVATIONS, Reference, a_target, an_image, clip_of, clt_of

F64 = torch.float64


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return clip_of("plain")


def made(clip: FrozenCLIP, activation: str = "TopK", skip: bool = False, **options: object) -> Graph:
    target = options.pop("target", a_target())
    return attribute(clip, clt_of(activation, skip=skip), an_image(), target, dtype=F64, **options)  # type: ignore[arg-type]


def books(graph: Graph) -> float:
    """By how much the edges into any node miss what they explain."""
    explained = graph.nodes.of("feature", "target")
    return float((graph.edges.inputs() - graph.nodes.activation)[explained].abs().max())


@pytest.mark.parametrize("skip", [None, "node", "through"])
def test_edges_are_the_jacobians_of_a_second_implementation(clip: FrozenCLIP, skip: str | None) -> None:
    clt, image, target = clt_of(skip=skip is not None), an_image(), a_target()
    graph = attribute(clip, clt, image, target, skip=skip or "node", dtype=F64)  # type: ignore[arg-type]
    reference = Reference(clip, clt, image, skip == "node")
    L, P = world.LAYERS, world.POSITIONS
    skips = torch.stack([reference.clt.skip_term(reference.x[layer], layer) for layer in range(L)]).detach()
    inputs = (reference.codes.detach(), reference.errors.detach(), skips, reference.root.detach())
    pre, _ = reference.pre_activations(*inputs)
    active = reference.codes != 0
    torch.testing.assert_close(pre[active], reference.codes[active])

    def outputs(*parts: Tensor) -> tuple[Tensor, Tensor]:
        found, embedding = reference.pre_activations(*parts)
        return found[active], embedding

    by_pre, by_embedding = torch.autograd.functional.jacobian(outputs, inputs)
    dense = graph.edges.dense()
    nodes = graph.nodes
    factor = target.scale / reference.norm
    direction = target.direction.double()
    places = {tuple(place): i for i, place in enumerate(active.nonzero().tolist())}
    rows = [(n, by_pre, places[n.layer, n.position, n.feature]) for n in nodes if n.kind == "feature"]
    checked = 0
    for node, jacobians, row in [*rows, (nodes[len(nodes) - 1], None, None)]:
        for source in nodes:
            if source.kind not in ("feature", "error", "skip", "input"):
                continue
            which = {"feature": 0, "error": 1, "skip": 2, "input": 3}[source.kind]
            if jacobians is None:
                slope = factor * torch.einsum("e,e...->...", direction, by_embedding[which])
            else:
                slope = jacobians[which][row]
            place: tuple[int, ...] = (source.layer, source.position)
            place = place[1:] if source.kind == "input" else place
            place = (*place, source.feature) if source.kind == "feature" else place
            expected = float((slope[place] * inputs[which][place]).sum())
            assert float(dense[node.index, source.index]) == pytest.approx(expected, abs=1e-10)
            checked += 1
    assert checked > 3000
    assert len(nodes) - 1 == int(nodes.of("target").nonzero())
    # features of the last layer that are not at [CLS] reach nothing, and are not there
    last = nodes.of("feature") & (nodes.layer == L - 1)
    assert set(nodes.position[last].tolist()) == {0}
    assert int(nodes.of("error").sum()) == L * P


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_books_add_up(clip: FrozenCLIP, activation: str, skip: bool) -> None:
    targets = [a_target(0, "one"), a_target(1, "two")]
    for positions in ("each", "summed"):
        for max_nodes in (4096, 25):
            graph = made(clip, activation, skip, target=targets, positions=positions, max_nodes=max_nodes)
            assert books(graph) < 1e-10
            assert int(graph.nodes.of("feature").sum()) <= max_nodes
            assert bool(graph.nodes.of("skip").any()) == skip
            assert bool(graph.nodes.of("rest").any()) == (max_nodes == 25)


def test_a_summed_graph_is_the_sum_of_the_placed_one(clip: FrozenCLIP) -> None:
    placed, summed = made(clip, skip=True), made(clip, skip=True, positions="summed")
    dense, total = placed.edges.dense(), torch.zeros(len(summed.nodes), len(summed.nodes), dtype=F64)
    number = {}
    for node in summed.nodes:
        number[node.kind, node.layer, node.feature, node.position if node.kind == "input" else -1] = node.index
    of = []
    for node in placed.nodes:
        place = -1
        if node.kind == "input":
            place = 0 if node.position == 0 else -1  # all patches are one node
        of.append(number[node.kind, node.layer, node.feature, place])
    total.index_put_((torch.tensor(of)[:, None], torch.tensor(of)[None]), dense, accumulate=True)
    torch.testing.assert_close(summed.edges.dense(), total, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.zeros(len(summed.nodes), dtype=F64).index_add_(0, torch.tensor(of), placed.nodes.activation),
        summed.nodes.activation,
    )


def test_any_batch_size_gives_the_same_graph(clip: FrozenCLIP) -> None:
    for positions in ("each", "summed"):
        one, other = (made(clip, positions=positions, batch_size=size) for size in (7, 256))
        torch.testing.assert_close(one.edges.dense(), other.edges.dense(), rtol=0, atol=1e-12)


def test_a_small_graph_keeps_the_rows_of_the_whole_one(clip: FrozenCLIP) -> None:
    whole, small = made(clip), made(clip, max_nodes=30, batch_size=3)
    at = [whole.nodes.find(n.layer, n.feature, n.position) for n in small.nodes if n.kind == "feature"]
    assert len(at) == 30
    assert all(i is not None for i in at)
    dense, found = whole.edges.dense(), small.edges.dense()
    index = torch.tensor([i for i in at if i is not None])
    torch.testing.assert_close(found[:30, :30], dense[index][:, index], rtol=0, atol=1e-12)
    rest = small.nodes.of("rest")
    left = torch.ones(int(whole.nodes.of("feature").sum()), dtype=torch.bool)
    left[index] = False
    expected = dense[index][:, : len(left)][:, left].sum(1)
    torch.testing.assert_close(found[:30, rest].sum(1), expected, rtol=0, atol=1e-12)
    # the most influential are there
    strongest = set(whole.top(8))
    assert strongest <= set(index.tolist())


def toy() -> Graph:
    """Two features, an error, an input and a bias; one target. By hand below."""
    one = torch.ones(1, dtype=torch.int64)
    none = -one
    nodes = make_nodes(
        [
            ("feature", torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([5, 6]), torch.tensor([2.0, 4.0])),
            ("error", 0 * one, 0 * one, none, None),
            ("input", none, 0 * one, none, None),
            ("bias", 0 * one, none, 0 * one, None),
            ("target", none, none, 0 * one, torch.tensor([10.0])),
        ],
        ["CLS"],
        ["made"],
    )
    rows = torch.tensor(
        [
            [0.0, 0.0, 0.0, 2.0, 0.0, 0.0],  # feature 0: the input alone
            [3.0, 0.0, -1.0, 0.0, 2.0, 0.0],  # feature 1
            [2.0, 6.0, 0.0, 0.0, 2.0, 0.0],  # the target
        ]
    ).double()
    edges = Edges.from_rows(rows, torch.tensor([0, 1, 5]), 6)
    return with_influence(Graph(nodes, edges, (a_target(),), torch.ones(1, dtype=F64), rows[2:], False, "through", {}))


def test_influence_and_scores_by_hand() -> None:
    graph = toy()
    # shares without the bias: target 1/4, 3/4; feature 1: 3/4 feature 0, 1/4 error; feature 0: 1 input
    influence = [1 / 4 + 3 / 4 * 3 / 4, 3 / 4, 3 / 4 * 1 / 4, 1 / 4 + 9 / 16]
    torch.testing.assert_close(graph.nodes.influence[:4], torch.tensor(influence).double())
    assert graph.scores.replacement == pytest.approx((13 / 16) / (13 / 16 + 3 / 16))
    # all nodes' inputs but feature 1's quarter: weights are influences, and 1 of the target
    total = sum(influence) + 1
    assert graph.scores.completeness == pytest.approx((total - 1 / 4 * 3 / 4) / total)
    # with the bias: target .2, .6, .2; feature 1: .5, 1/6, 1/3
    bias = 0.2 + 0.6 / 3
    assert float(graph.nodes.influence[4]) == pytest.approx(bias)
    assert graph.scores.ends["bias"] == pytest.approx(bias)
    assert graph.scores.ends["error"] == pytest.approx(0.1)
    assert sum(graph.scores.ends.values()) == pytest.approx(1)
    assert graph.scores.constants == pytest.approx(4 / 18)


def test_predictions_by_hand() -> None:
    graph = toy()
    # feature 0 away: feature 1 loses 3 of 4, the target 2 + 6 x 3/4
    found = graph.predict({0: -1.0}, "frozen")
    assert float(found.activations[1]) == pytest.approx(-3)
    assert float(found.targets[0]) == pytest.approx(-2 - 4.5)
    # both away: feature 1 is pinned at 0, and what reaches it does not count
    assert float(graph.predict({0: -1.0, 1: -1.0}, "frozen").targets[0]) == pytest.approx(-8)
    assert float(graph.predict({2: -1.0}, "frozen").targets[0]) == pytest.approx(6 / 4)
    with pytest.raises(UserError, match="no node 9"):
        graph.predict({9: 1.0})
    with pytest.raises(UserError, match="is a target"):
        graph.predict({5: 1.0})


def dense_pruning(rows: Tensor, kinds: list[str], weights: Tensor, node_share: float, edge_share: float) -> tuple:  # type: ignore[type-arg]
    """circuit-tracer's definitions on a dense matrix, in plain steps; rows are targets, biases are not in it."""
    n = len(rows)

    def shares(matrix: Tensor) -> Tensor:
        return matrix.abs() / matrix.abs().sum(1, keepdim=True).clamp(min=1e-10)

    def influence(a: Tensor) -> Tensor:
        out, current = torch.zeros(n, dtype=F64), weights.clone()
        while bool(current.any()):
            current = current @ a
            out += current
        return out

    def threshold(scores: Tensor, share: float) -> float:
        ordered = scores.flatten().sort(descending=True).values
        cumulated = ordered.cumsum(0) / ordered.sum()
        return float(ordered[min(int(torch.searchsorted(cumulated, share)), len(ordered) - 1)])

    of_nodes = influence(shares(rows))
    keep = of_nodes >= threshold(of_nodes, node_share)
    always = torch.tensor([kind in ("input", "target") for kind in kinds])
    keep |= always
    pruned = rows * keep[:, None] * keep
    a = shares(pruned)
    scores = a * (influence(a) + weights)[:, None]
    edges = (scores >= threshold(scores, edge_share)) & (pruned != 0)
    features = torch.tensor([kind == "feature" for kind in kinds])
    while True:
        before = keep.clone()
        edges &= keep[:, None] & keep
        keep &= always | edges.any(0)
        keep &= ~features | edges.any(1)
        if torch.equal(keep, before):
            break
    edges &= keep[:, None] & keep
    a = shares(rows)
    error = torch.tensor([kind == "error" for kind in kinds])
    tokens = torch.tensor([kind == "input" for kind in kinds])
    replacement = of_nodes[tokens].sum() / (of_nodes[tokens].sum() + of_nodes[error].sum())
    output = of_nodes + weights
    completeness = ((1 - a[:, error].sum(1)) * output).sum() / output.sum()
    return of_nodes, keep, edges, float(replacement), float(completeness)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), node_share=st.floats(0.3, 0.95), edge_share=st.floats(0.5, 0.99))
def test_pruning_and_scores_are_those_of_the_dense_definition(seed: int, node_share: float, edge_share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, errors, inputs, targets = 14, 5, 4, 2
    kinds = ["feature"] * features + ["error"] * errors + ["input"] * inputs + ["target"] * targets
    n = len(kinds)
    rows = torch.randn(n, n, generator=generator).double() ** 3
    rows[:, features + errors + inputs :] = 0
    rows[features : features + errors + inputs] = 0
    rows[:features, :features] = rows[:features, :features].tril(-1)
    rows *= torch.rand(n, n, generator=generator) < 0.6
    weights = torch.zeros(n, dtype=F64)
    weights[-targets:] = torch.rand(targets, generator=generator).double()
    # a bias node at the end of the sources, which must not matter
    order = [*range(features + errors + inputs), n, *range(n - targets, n)]
    wide = torch.zeros(n + 1, n + 1, dtype=F64)
    at = torch.tensor([*range(n - targets), *range(n - targets + 1, n + 1)])
    wide[at[:, None], at] = rows
    wide[:, n - targets] = torch.randn(n + 1, generator=generator).double()
    wide[n - targets] = 0
    wide[features : n - targets] = 0
    count = torch.arange
    nodes = make_nodes(
        [
            ("feature", count(features), count(features) * 0, count(features), torch.ones(features)),
            ("error", count(errors), count(errors) * 0, count(errors) * 0 - 1, None),
            ("input", count(inputs) * 0 - 1, count(inputs), count(inputs) * 0 - 1, None),
            ("bias", count(1), count(1) - 1, count(1), None),
            ("target", count(targets) * 0 - 1, count(targets) * 0 - 1, count(targets), torch.ones(targets)),
        ],
        [f"p{i}" for i in range(inputs)],
        ["a", "b"],
    )
    assert len(order) == len(nodes)
    edges = Edges.from_rows(wide, count(n + 1), n + 1)
    graph = with_influence(
        Graph(nodes, edges, (a_target(), a_target(1)), weights[-targets:], wide[-targets:], False, "through", {})
    )
    influence, keep, kept_edges, replacement, completeness = dense_pruning(rows, kinds, weights, node_share, edge_share)
    torch.testing.assert_close(graph.nodes.influence[at], influence)
    assert graph.scores.replacement == pytest.approx(replacement, nan_ok=True)
    assert graph.scores.completeness == pytest.approx(completeness)
    pruned = graph.prune(node_share, edge_share)
    real = ~pruned.nodes.of("bias")
    assert int(real.sum()) == int(keep.sum())
    found = pruned.edges.dense()[real][:, real] != 0
    assert torch.equal(found, kept_edges[keep][:, keep])


def test_pruning_everything_in_keeps_everything(clip: FrozenCLIP) -> None:
    graph = made(clip)
    same = graph.prune(1.0, 1.0)
    # but for nodes that lead nowhere
    leads = torch.zeros(len(graph.nodes), dtype=torch.bool).index_fill_(0, graph.edges.source, True)
    expected = leads | ~graph.nodes.of("feature", "error")
    assert len(same.nodes) == int(expected.sum())
    smaller = graph.prune()
    assert len(smaller.nodes) < len(graph.nodes)
    assert smaller.pruned
    for name, nodes, edges in (("nodes", 1.5, 0.5), ("edges", 0.5, -1)):
        with pytest.raises(UserError, match=f"{name} must lie in 0..1"):
            graph.prune(nodes, edges)
    with pytest.raises(UserError, match="pruned graph predicts nothing"):
        smaller.predict({0: -1.0})


def test_the_most_probable_classes(clip: FrozenCLIP) -> None:
    head = torch.nn.functional.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    embedding = torch.nn.functional.normalize(head[:, 2] + 0.5 * head[:, 4], dim=0)
    targets, weights = top_targets(head, world.CLASSES, embedding, scale=5.0)
    chances = (5 * embedding @ head).softmax(0)
    assert sum(weights) >= 0.95 or len(weights) == 5
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(float(chances.max()), rel=1e-4)
    assert targets[0].name == f"{world.CLASSES[int(chances.argmax())]} - mean of classes"


def test_mistakes_are_told(clip: FrozenCLIP) -> None:
    image, clt = an_image(), clt_of()
    for options, message in (
        ({"target": []}, "at least one target"),
        ({"weights": [0.0]}, "not all 0"),
        ({"weights": [1.0, 2.0]}, "1 targets need"),
        ({"positions": "some"}, "each or summed"),
        ({"max_nodes": 0}, "max_nodes must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ):
        arguments = {"target": a_target(), **options}
        with pytest.raises(UserError, match=message):
            attribute(clip, clt, image, **arguments)  # type: ignore[arg-type]


def test_a_graph_shows_itself(clip: FrozenCLIP) -> None:
    graph = made(clip)
    assert "84 feature" in repr(graph)
    shown = graph._repr_html_()
    assert graph.nodes[graph.top(1)[0]].name in shown
    assert "influence ends in" in shown


def test_an_image_without_active_features_is_all_errors(clip: FrozenCLIP) -> None:
    clt = clt_of("ReLU")
    with torch.no_grad():
        clt.b_enc.fill_(-1000.0)
    for positions in ("each", "summed"):
        graph = attribute(clip, clt, an_image(), a_target(), positions=positions, dtype=F64, progress=True)
        assert not bool(graph.nodes.of("feature").any())
        assert books(graph) < 1e-10
        assert graph.prune().top(5) == []
        assert 0 <= graph.scores.replacement <= 1
    with pytest.raises(UserError, match="no feature is active in image 0"):
        validate(clip, clt, [an_image()], [a_target()], 4, draws=2)


def test_graphs_are_made_in_inference_mode_as_well(clip: FrozenCLIP) -> None:
    for tower in ("held", "tangent"):
        expected = made(clip, tower=tower)
        with torch.inference_mode():
            found = made(clip, tower=tower)
        torch.testing.assert_close(found.edges.dense(), expected.edges.dense())
        torch.testing.assert_close(found.tangent, expected.tangent)


def test_influence_along_known_rows_is_one_pass_down_the_layers() -> None:
    """Against the sum of all paths, `w (A + A^2 + ...)`, of rows known in any order."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, -1])  # the last column is a bias
    n = len(layer)
    rows = torch.randn(n, n, generator=generator, dtype=F64)
    rows *= (layer[:, None] > layer[None]) & (layer[:, None] >= 0)
    held = torch.randn(2, n, generator=generator, dtype=F64)
    counted = torch.ones(n, dtype=F64)
    counted[-1] = 0
    weights = torch.tensor([0.3, 0.7], dtype=F64)
    known = torch.tensor([5, 2, 7, 3])

    def shares(some: Tensor) -> Tensor:
        size = some.abs() * counted
        return size / size.sum(1, keepdim=True).clamp(min=1e-10)

    A = torch.zeros(n, n, dtype=F64)
    A[known] = shares(rows[known])
    wanted = current = weights @ shares(held)
    for _ in range(n):
        current = current @ A
        wanted = wanted + current
    found = partial_influence(rows[known], known, held, weights, counted, layer)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)

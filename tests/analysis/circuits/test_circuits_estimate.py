"""What a graph will cost, against what it costs: bytes of tensors, and operations in the place of seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from clt_lightning.analysis.circuits import attention_features, attribution, estimate
from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.estimate import Estimate
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.linear import Step
from clt_lightning.analysis.circuits.making import Maker
from clt_lightning.analysis.circuits.pace import Pace, Stopwatch, Timed
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of
from tests.analysis.circuits.residual_world import sae_of

Said = list[Estimate]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return clip_of("plain")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """The estimates of the graphs that are made."""
    found: Said = []

    def keep(*arguments: Any) -> Estimate:
        found.append(estimate.estimate(*arguments))
        return found[-1]

    monkeypatch.setattr(attribution, "estimate", keep)
    return found


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes that tensors have at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    now = most = 0
    profiler: Any = seen.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("activation", "topology", "options"),
    [
        ("TopK", "cross_layer", {}),
        ("ReLU", "cross_layer", {"dtype": torch.float64}),
        ("ReLU", "cross_layer", {"positions": "summed"}),
        ("ReLU", "cross_layer", {"tower": "tangent"}),
        ("ReLU", "cross_layer", {"max_nodes": 30}),
        ("ReLU", "sae", {"batch_size": 16}),
        ("ReLU", "per_layer", {"skip": "through"}),
    ],
)
def test_the_bytes_are_those_at_the_peak(
    clip: FrozenCLIP, said: Said, activation: str, topology: str, options: dict[str, Any]
) -> None:
    clt, image = clt_of(activation, topology, "skip" in options), an_image().float()

    def make() -> Graph:
        return attribute(clip, clt, image, a_target(), **options)

    make()  # what is made once and kept is not the graph's
    assert peak_of(make) == pytest.approx(said[-1].bytes, rel=0.15)


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({}, 0.03),
        ({"positions": "summed"}, 0.03),
        ({"skip": "through"}, 0.03),
        ({"max_nodes": 60, "batch_size": 8}, 0.15),  # which rows come late is foreseen, not known
    ],
)
def test_the_seconds_are_those_of_what_is_computed(
    clip: FrozenCLIP, said: Said, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], within: float
) -> None:
    """A clock that counts floating-point operations: the estimate knows nothing but what two backwards took."""
    clt = clt_of("ReLU", skip="skip" in options)
    with FlopCounterMode(display=False) as counter:
        monkeypatch.setattr(estimate, "clock", counter.get_total_flops)
        monkeypatch.setattr(attribution, "clock", counter.get_total_flops)
        graph = attribute(clip, clt, an_image(), a_target(), progress=True, **options)
    assert said[-1].seconds == pytest.approx(graph.about["seconds"], rel=within)
    assert graph.about["seconds"] == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_without_progress_no_time_is_measured(clip: FrozenCLIP, said: Said) -> None:
    attribute(clip, clt_of("ReLU"), an_image(), a_target(), max_nodes=30)
    assert said[-1].seconds is None
    assert (said[-1].rows, said[-1].active > 30) == (30, True)


def test_the_edges_are_counted(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    count = estimate.peak_bytes

    def keep(maker: Maker, edges: int, nodes: int) -> int:
        counted.append(edges)
        return count(maker, edges, nodes)

    monkeypatch.setattr(estimate, "peak_bytes", keep)
    for options in ({}, {"positions": "summed"}, {"skip": "through"}):
        graph = attribute(clip, clt_of("ReLU", skip=True), an_image(), a_target(), **options)  # type: ignore[arg-type]
        assert len(graph.edges) == pytest.approx(counted[-1], rel=0.06)


def test_the_bytes_of_a_graph_with_attention(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    said: Said = []
    monkeypatch.setattr(attention_features, "check_memory", lambda expected, *_: said.append(expected))
    clt, sae = clt_of("ReLU", skip=True), sae_of("ReLU", "layer", site="attn_out")

    def make() -> Graph:
        return attention_features.attribute_with_attention(clip, clt, sae, an_image().float(), a_target())

    make()
    assert peak_of(make) == pytest.approx(said[-1].bytes, rel=0.15)
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "available", lambda: 1000)
    with pytest.raises(UserError, match=r"needs about 0\.0 GB.*no growth with attention's features"):
        make()


def test_too_little_memory_is_said_before(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "available", lambda: 1000)
    with pytest.raises(UserError, match="lower max_nodes"):
        attribute(clip, clt_of(), an_image(), a_target())


def test_the_cost_is_said_before(clip: FrozenCLIP, capsys: pytest.CaptureFixture[str]) -> None:
    attribute(clip, clt_of(), an_image(), a_target(), progress=True, batch_size=4)
    spoken = "".join(capsys.readouterr())
    assert "84 active features, 84 rows, about " in spoken
    assert " MB, about " in spoken


def test_a_step_costs_so_much_and_so_much_a_row() -> None:
    """Made costs of a tower of 4 layers, of which the deepest with features is 2."""
    fixed, each, read = 3.0, 0.5, 2.0

    def steps(rows: int) -> list[tuple[int, float]]:
        passing = [(begin, fixed + each * rows) for begin in (2, 1, 1, 0, 0)]
        return [(2, read * rows), *passing]

    pace = Pace(Timed(2, steps(2)), Timed(16, steps(16)))
    assert pace.seconds(torch.tensor([0, 0, 10])) == pytest.approx(10 * read + 5 * fixed + 5 * 10 * each)
    assert pace.seconds(torch.tensor([4])) == pytest.approx(4 * read + 2 * fixed + 2 * 4 * each)
    # 10 rows pass the lower steps, 6 the upper ones; they are read at two layers, with all that have begun there
    assert pace.seconds(torch.tensor([4, 0, 6])) == pytest.approx((10 + 6) * read + 5 * fixed + (3 * 6 + 2 * 10) * each)
    # noise: a larger backward that took less time costs its own time, whatever its rows
    odd = Pace(Timed(2, [(0, 5.0)]), Timed(16, [(0, 4.0)]))
    assert odd.seconds(torch.tensor([8])) == pytest.approx(4.0)
    same = Pace(Timed(1, [(0, 5.0)]), Timed(1, [(0, 4.0)]))
    assert same.seconds(torch.tensor([1])) == pytest.approx(4.0)


def test_steps_are_known_by_the_layer_that_their_rows_begin_at() -> None:
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    watch = Stopwatch(lambda: next(ticks))
    nothing = torch.zeros(0)
    for step in (Step(1, "attention", nothing), Step(0, "mlp", nothing), Step(-1, "input", nothing), None):
        watch.passed(step)
    assert watch.steps == [(2, 1.0), (1, 2.0), (0, 3.0), (0, 4.0)]

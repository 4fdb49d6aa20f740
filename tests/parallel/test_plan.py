"""The plan's numbers against hand-worked ones, its choice, and the tables that the docs show."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.core.people import size
from clt_lightning.parallel.plan import (
    Machine,
    Shape,
    all_plans,
    all_reduce,
    best,
    cascade_seconds,
    documented_tables,
    make_plan,
    units_cost,
)
from clt_lightning.transcoder import CrossLayerTranscoder, TopK
from clt_lightning.transcoder.attention import SparseAttention
from clt_lightning.transcoder.decoders import Topology

ROOT = Path(__file__).parents[2]
VIT_B = Shape(12, 768, 50, 6144)


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
def test_weights_are_those_of_a_transcoder(topology: Topology) -> None:
    clt = CrossLayerTranscoder(4, 6, 10, TopK(2), topology=topology)
    shape = Shape(4, 6, 5, 10, cross_layer=topology == "cross_layer")
    assert shape.divided + shape.shared == sum(p.numel() for p in clt.parameters())


def test_a_hand_worked_step_of_ddp() -> None:
    # 12 layers, 78 blocks of 6144 x 768, and 12 x 6144 biases
    divided = 6144 * 90 * 768 + 12 * 6144
    assert VIT_B.divided == divided
    plan = make_plan(VIT_B, Machine(), gpus=8, feature=1, tokens=32768)
    assert plan.tokens == 4096
    assert plan.data == 8
    # gradients in fp32 through a ring of 8: 2 x 7/8 of them
    assert plan.gradient_bytes == pytest.approx(1.75 * 4 * (divided + 12 * 768))
    assert plan.reconstruction_bytes == plan.candidate_bytes == 0
    # weights, gradients, two moments in fp32; the backbone's 12 x 12 d^2 weights in bf16
    assert plan.state_bytes == pytest.approx(16 * (divided + 12 * 768) + 2 * 144 * 768**2)
    assert plan.checkpoint_bytes == 12 * (divided + 12 * 768)


def test_a_hand_worked_step_of_one_group() -> None:
    machine = Machine(link=1e11)
    plan = make_plan(VIT_B, machine, gpus=4, feature=4, tokens=1000)
    assert plan.tokens == 1000  # all of a group's GPUs read all of its tokens
    assert plan.reconstruction_bytes == pytest.approx(1.5 * 12 * 1000 * 768 * 4)
    assert plan.candidate_bytes == 3 * 12 * 1000 * 64 * 4
    assert plan.gradient_bytes == 0
    assert plan.link_seconds == pytest.approx(plan.moved / 1e11)
    encoder = 2 * 12 * 768 * 1536 * 1000
    clip = 1000 * 12 * (24 * 768**2 + 4 * 50 * 768)
    sparse = 2 * 1000 * 64 * (3 * 78 + 24) * 768 / 4
    assert plan.flop == pytest.approx(encoder + clip + sparse)


def test_links_between_machines_carry_what_leaves_them() -> None:
    # two machines of 4; every GPU sends 1/4 of the gradients over the far link, both ways
    machine = Machine(link=1e15, far_link=1e9, node=4)
    plan = make_plan(VIT_B, machine, gpus=8, feature=1, tokens=800)
    assert plan.link_seconds == pytest.approx(4 * (VIT_B.divided + VIT_B.shared) / 4 / 1e9)
    # features within a machine: the same bytes leave it, a quarter from each GPU
    within = make_plan(VIT_B, machine, gpus=8, feature=4, tokens=800)
    assert within.link_seconds == pytest.approx(4 * (VIT_B.divided / 4 + VIT_B.shared) / 1e9, rel=1e-3)


def test_state_falls_as_the_number_of_shards() -> None:
    backbone = 2 * 144 * 768**2
    states = [p.state_bytes - backbone for p in all_plans(VIT_B, Machine(), 8, 8000)]
    assert [states[0] / s for s in states] == pytest.approx([1, 2, 4, 8], rel=1e-3)


def test_the_choice_fits_and_is_the_fastest() -> None:
    machine = Machine()
    plans = all_plans(Shape(12, 768, 50, 98304), machine, 8, 32768)
    chosen = best(plans, machine)
    assert chosen is not None
    assert plans[0].memory > 0.9 * machine.memory  # DDP does not fit
    assert all(p.seconds >= chosen.seconds for p in plans if p.memory <= 0.9 * machine.memory)
    assert best(plans, Machine(memory=1e9)) is None
    assert best(all_plans(VIT_B, machine, 1, 4096), machine).feature == 1  # type: ignore[union-attr]


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="feature=3 must divide 8 GPUs"):
        make_plan(VIT_B, Machine(), 8, 3, 100)


def test_a_hand_worked_cascade() -> None:
    """15 tokens (3 images), 2 layers: 40 d^2 + 12 P d operations a token and layer in the CLIP, then the transcoder."""
    shape = Shape(2, 4, positions=5, n_features=8, k=2)
    ones = Machine(flops=1, bandwidth=1, gather=1, link=1, far_link=1)
    clip, encoder, rows = 30 * (40 * 16 + 12 * 5 * 4), 2 * 2 * 4 * 8 * 15, 3 * 15 * 2 * 3 * 4 * 4
    moved = 2 * 2 * 15 * 8 * 4 + 4 * 2 * 15 * 4 * 4 + 12 * 8 * ((2 + 3) * 4 + 2)
    assert cascade_seconds(shape, ones, 1, 3) == clip + encoder + rows + moved == 38592
    # two processes: half the features each, and the sums of y_hat and of its gradient over the link
    assert cascade_seconds(shape, ones, 2, 3) == clip + (encoder + rows) / 2 + 960 + 1920 + 1056 + 960


def test_small_things() -> None:
    assert all_reduce(100, 1) == 0
    assert all_reduce(100, 4) == 150
    assert [size(n) for n in (12, 3.4e6, 2e9, 5e12)] == ["12 B", "3.4 MB", "2 GB", "5 TB"]


def test_the_command_reads_layered_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "quickstart.yaml")
    above = tmp_path / "above.yaml"
    above.write_text("model: {transcoder: {n_features: 1024}}\ntrainer: {devices: 4}\n")
    main(["plan", "--config", config, "--config", str(above), "--gpu_memory", "24GB"])
    told = capsys.readouterr().out
    assert "F = 1,024, k = 12" in told
    assert "4 GPUs of 24 GB" in told
    assert told.count("<- take this") == 1
    assert "loss.cascade comes on top from 25% of the run on: 32 images" in told
    assert re.search(r"the whole run: 1,500 steps, 7\.1 M tokens, .* on 4 GPUs, .* GPU hours, \d+% of them the", told)
    above.write_text("model: {loss: {cascade: {stream: 0, embedding: 0}}}\n")
    main(["plan", "--config", config, "--config", str(above)])
    told = capsys.readouterr().out
    assert "loss.cascade" not in told
    assert "the cascade's terms" not in told
    main(["plan", "--config", config, "--gpus", "2", "--gpu_memory", "1MB"])
    assert "none fits" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--config", "nowhere.yaml"]])
def test_mistakes_end_in_one_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *words])
    assert stop.value.code == 2
    assert "config" in capsys.readouterr().err


def test_the_tables_of_the_docs_are_the_commands() -> None:
    assert documented_tables() in (ROOT / "docs" / "scaling.md").read_text()


def test_the_whole_run_is_its_steps_with_the_cascade_from_its_start_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hand-made step of 2 s, of which 3,600 s and the cascade's 4 s on three quarters are 1800 x (2 + 3) s."""
    from clt_lightning.cli.plan import _say_whole_run

    shape, ones = Shape(2, 4, positions=5, n_features=8, k=2), Machine()
    step = dataclasses.replace(make_plan(shape, ones, 1, 1, 60), compute_seconds=2.0, link_seconds=0.0)
    _say_whole_run({"trainer": {"max_steps": 1800}}, step, (4.0, 0.25))
    told = capsys.readouterr().out
    assert told.startswith("the whole run: 1,800 steps, 108 k tokens, 2 h 30 min, 60% of them the cascade's terms;")
    _say_whole_run({}, step, (0.0, 0.0))
    assert "trainer.max_steps is not set" in capsys.readouterr().out


def test_units_of_attention_are_counted_beside(capsys: pytest.CaptureFixture[str]) -> None:
    """Their weights are those of the module; they rule out divided features."""
    cost = units_cost(Shape(3, 32, 10, 64), Machine(), 48, 5)
    made = SparseAttention(3, 32, 48, 2)
    assert cost.weights == sum(p.numel() for p in made.parameters())
    assert cost.memory == 16 * cost.weights + 3 * 3 * 50 * 48 * 4
    configs = [
        word for name in ("quickstart", "attention") for word in ("--config", str(ROOT / f"configs/{name}.yaml"))
    ]
    main(["plan", *configs, "--gpus", "4"])
    told = capsys.readouterr().out
    assert "model.attention comes on top: 593 k weights" in told
    assert "2 x 2" not in told

"""Where a step's time goes, how far a run is, and who holds it up."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.profilers import PassThroughProfiler

from clt_lightning.callbacks.throughput import Throughput
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.core.people import count, duration
from clt_lightning.runs.timing import PARTS, StepClock

from .world import STEPS, scalars, write_config


def test_a_clock_adds_up_parts_and_forgets_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("clt_lightning.runs.timing.time.perf_counter", lambda: now[0])
    clock = StepClock()
    with clock.part("clip"):
        now[0] += 1
    assert clock.take() == {}  # off
    clock.start(torch.device("cpu"))
    for seconds in (1.0, 2.0):
        with clock.part("clip"):
            now[0] += seconds
        clock.begin("data", host=True)
        now[0] += 0.5
        clock.end("data", host=True)
    clock.end("optimizer")  # never begun
    assert clock.latest("data") == 0.5
    assert clock.take() == {"clip": 3.0, "data": 1.0}
    assert clock.take() == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (89, "89 s"), (600, "10 min"), (14_700, "4 h 05 min"), (190_000, "2 d 4 h")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_are_for_people() -> None:
    assert [count(n) for n in (12, 4_560, 39_700_000, 2.5e9)] == ["12", "4.56 k", "39.7 M", "2.5 G"]


def test_the_parts_make_up_the_step_and_the_progress_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path,
        data={"init_args": {"num_workers": 0}},
        trainer={"log_every_n_steps": 2},
        throughput={"progress_every_seconds": 1e-9},
    )
    main(["fit", "--config", str(config)])
    shown = scalars(tmp_path / "runs" / "run" / "version_0")
    whole = dict(shown["train/step_time"])
    parts = {part: dict(shown[f"train/time/{part}"]) for part in (*PARTS, "other")}
    assert len(whole) == STEPS // 2
    for step in list(whole)[1:]:
        assert all(parts[part][step] > 0 for part in PARTS)
        assert sum(p[step] for p in parts.values()) == pytest.approx(whole[step], rel=1e-4)
    tokens = 8 * 9  # batch_size x tokens.per_image
    assert [value for _, value in shown["train/tokens"]] == [tokens * 2 * (i + 1) for i in range(STEPS // 2)]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) >= STEPS - 2
    pattern = rf"step 10 of {STEPS} \(71.4%\), 720 tokens, [\d.]+( k)? tokens/s, about [\d.]+ s left"
    assert any(re.fullmatch(pattern, line) for line in lines), lines


class Play:
    """Steps of a training whose parts take the seconds that are given, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, watch: Throughput, workers: int = 1) -> None:
        self.now, self.watch = 0.0, watch
        monkeypatch.setattr("clt_lightning.runs.timing.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("clt_lightning.callbacks.throughput.time.monotonic", lambda: self.now)
        self.trainer: Any = SimpleNamespace(
            global_step=0,
            log_every_n_steps=10,
            max_steps=1000,
            is_global_zero=True,
            strategy=None,
            profiler=PassThroughProfiler(),
            datamodule=SimpleNamespace(num_workers=workers),
            print=lambda *a, **k: None,
        )
        self.logged: dict[str, float] = {}
        self.module = cast(Any, SimpleNamespace(device=torch.device("cpu"), clock=StepClock(), log=self.log))
        watch.on_train_start(self.trainer, self.module)

    def log(self, name: str, value: float, **_: Any) -> None:
        self.logged[name] = value

    def steps(self, number: int, hidden: float = 0.0, **parts: float) -> None:
        """Parts by name; of the wait for data, `hidden` seconds pass while a GPU works."""
        for _ in range(number):
            self.watch.on_train_batch_start(self.trainer, self.module, None, 0)
            for part, seconds in parts.items():
                self.module.clock.begin(part, host=True)
                self.now += seconds
                self.module.clock.end(part, host=True)
            self.now -= hidden
            self.trainer.global_step += 1
            self.watch.on_train_batch_end(self.trainer, self.module, {"tokens": 100}, None, 0)


def test_a_starving_step_is_named_once_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    play = Play(monkeypatch, Throughput(starving_share=0.25))
    parts = {"data": 0.5, "clip": 0.2, "transcoder": 0.2, "optimizer": 0.05, "other": 0.05}
    play.steps(10, **parts)
    assert not recwarn.list  # one window may hold the start of an epoch
    play.steps(30, **parts)
    assert len(recwarn.list) == 1
    told = str(recwarn.list[0].message)
    assert "the data loader is the bottleneck: of 1 s per step, 0.5 s (50%)" in told
    assert "0.2 s in the CLIP" in told
    assert "data.init_args.num_workers (now 1;" in told
    assert play.logged["train/tokens_per_second"] == pytest.approx(100)
    assert play.logged["train/tokens"] == 4000
    assert play.logged["train/time/other"] == pytest.approx(0.05)


@pytest.mark.parametrize(("data", "told"), [(0.24, 0), (0.27, 1)])
def test_the_share_is_that_of_the_whole_step(
    data: float, told: int, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    play = Play(monkeypatch, Throughput(starving_share=0.25))
    play.steps(50, data=data, clip=0.3, transcoder=1 - 0.3 - data)
    assert len(recwarn.list) == told


def test_waiting_that_a_busy_gpu_hides_is_no_bottleneck(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    play = Play(monkeypatch, Throughput())
    play.steps(60, data=0.9, clip=0.3, transcoder=0.5, optimizer=0.15, hidden=0.85)
    assert play.logged["train/step_time"] == pytest.approx(1.0)
    assert not recwarn.list


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="progress_every_seconds"):
        Throughput(progress_every_seconds=0)
    with pytest.raises(UserError, match="starving_share"):
        Throughput(starving_share=2)

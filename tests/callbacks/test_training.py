"""Throughput and the share of dead features, while training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clt_lightning.callbacks import Reconstruction, Throughput, TrainDead
from clt_lightning.callbacks.throughput import memory

from .world import LAYERS, Made, module, trainer


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_speed_and_memory_are_logged_and_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Made(batch_size=8)
    runner = trainer(tmp_path, Throughput(), Reconstruction(), max_steps=6, val_check_interval=3)
    runner.fit(module(), datamodule=data)
    logged = scalars(Path(str(runner.log_dir)))
    speed, seconds = dict(logged["train/tokens_per_second"]), dict(logged["train/step_time"])
    assert len(speed) == len(seconds) == 3
    tokens = 8 * 10
    for step in list(speed)[1:]:  # the first window lacks the first step
        assert speed[step] * seconds[step] == pytest.approx(tokens, rel=1e-4)
    assert all(value > 0 for _, value in logged["train/memory/rss"])
    summary = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training: ")]
    assert len(summary) == 1
    assert "s per step" in summary[0]
    assert "tokens/s" in summary[0]
    assert "peak memory: rss" in summary[0]


def test_a_run_shorter_than_the_logging_interval_is_summed_up_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, Throughput(), max_steps=1, log_every_n_steps=50).fit(module(), datamodule=Made())
    assert "training: " in capsys.readouterr().out


def test_peak_memory_is_in_gib_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "clt_lightning.callbacks.throughput.peak_resident"
    monkeypatch.setattr(where, lambda: 3 * 2**29)
    assert memory(torch.device("cpu")) == {"rss": 1.5}
    monkeypatch.setattr(where, lambda: None)
    assert memory(torch.device("cpu")) == {}


def test_dead_share_follows_the_modules_counters(tmp_path: Path) -> None:
    model = module()
    model.loss_config.auxk.dead_after_tokens = 2 * 80
    runner = trainer(tmp_path, TrainDead(), max_steps=4, log_every_n_steps=2, limit_val_batches=0)
    runner.fit(model, datamodule=Made())
    logged = scalars(Path(str(runner.log_dir)))
    expected = (model.tokens_since_fired >= 160).double().mean(1)
    assert logged["train/dead"][-1][1] == pytest.approx(float(expected.mean()), rel=1e-5)
    for layer in range(LAYERS):
        assert logged[f"train/dead/layer_{layer:02d}"][-1][1] == pytest.approx(float(expected[layer]), rel=1e-5)

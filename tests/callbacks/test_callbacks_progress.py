"""How far a run is, with a Trainer of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import lightning.pytorch as pl
import pytest

from clt_lightning.callbacks import ProgressLine, Reconstruction, Summary, Table, Throughput, ZeroShot
from clt_lightning.callbacks.progress import total_steps
from clt_lightning.core.progress import Progress

from .world import Made, module, trainer


def test_all_stages_with_a_trainer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "shortest", 0.0)
    monkeypatch.setattr(Progress, "_first", 0.0)
    model, data = module(), Made()
    callbacks = [Reconstruction(), ZeroShot(), Throughput(), Table(), Summary(), ProgressLine()]
    options = {"enable_progress_bar": True, "enable_model_summary": True, "accumulate_grad_batches": 2}
    runner = trainer(tmp_path, *callbacks, max_steps=3, num_sanity_val_steps=1, **options)
    runner.fit(model, datamodule=data)
    out = capsys.readouterr().out
    assert [line.split(",")[0] for line in out.splitlines() if line.startswith("step ")] == [
        "step 1 of 3 (33%)",
        "step 2 of 3 (67%)",
        "step 3 of 3 (100%)",
    ]
    assert "sanity check: 1 of 1 batches (100%)" in out
    assert "3 steps of 16 images" in out
    runner.test(model, datamodule=data, verbose=False)
    out = capsys.readouterr().out
    assert "test: 4 of 4 batches (100%)" in out
    assert "weights of step 3" in out


def test_how_many_steps_there_will_be(tmp_path: Path) -> None:
    class See(pl.Callback):
        found: int | None = -1

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.found = total_steps(trainer)

    for options, expected in (
        ({"max_steps": 3, "max_epochs": -1}, 3),
        ({"max_steps": -1, "max_epochs": 2}, 8),  # 4 batches an epoch
        ({"max_steps": -1, "max_epochs": 2, "accumulate_grad_batches": 3}, 4),
        ({"max_steps": 5, "max_epochs": 1}, 4),
        ({"max_steps": -1, "max_epochs": -1, "max_time": "00:00:00:01"}, None),
    ):
        see = See()
        model = module()
        model.schedule_config.decay = "none"  # it needs to know the end
        trainer(tmp_path, see, limit_val_batches=0, **options).fit(model, datamodule=Made())
        assert see.found == expected


def test_the_loss_of_accumulated_batches_is_that_of_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "shortest", 0.0)
    monkeypatch.setattr(Progress, "_first", 0.0)
    said = []
    for batches in (1, 4):
        line = ProgressLine()
        options = {"enable_progress_bar": True, "max_steps": 1, "accumulate_grad_batches": batches}
        trainer(tmp_path, line, limit_val_batches=0, **options).fit(module(), datamodule=Made(batch_size=8))
        said.append(float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1]))  # type: ignore[index]
    assert said[1] == pytest.approx(said[0], rel=0.3)  # not a quarter of it


def test_a_run_that_fails_leaves_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            raise ZeroDivisionError

    line = ProgressLine()
    runner = trainer(tmp_path, Fails(), line, enable_progress_bar=True)
    with pytest.raises(ZeroDivisionError):
        runner.fit(module(), datamodule=Made())
    assert line._steps is None
    assert line._batches is None

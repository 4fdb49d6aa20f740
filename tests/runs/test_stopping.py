"""A run that early stopping has ended stays ended, until the config says otherwise; stops come after whole steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from clt_lightning.cli.main import main
from clt_lightning.runs.folder import LAST, RunFolder
from clt_lightning.runs.resume import find

from .test_whole_steps import dies_after
from .world import differences, scalars, state, write_config


def stopping(**settings: Any) -> list[dict[str, Any]]:
    """Early stopping on a number that never improves: the second validation is the last one."""
    init = {"monitor": "val/fvu/all", "min_delta": 100.0, "patience": 1, **settings}
    return [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": init}]


def config(folder: Path, **trainer: Any) -> Path:
    settings = {"callbacks": stopping(), **trainer}
    return write_config(folder, data={"init_args": {"num_workers": 0}}, trainer=settings)


def at(run: Path) -> int:
    found = find("last", run / "checkpoints")
    assert found is not None
    return found.step


def test_a_stopped_run_trains_no_further(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["fit", "--config", str(config(tmp_path)), "--ckpt_path", "last"]
    run = tmp_path / "runs" / "run" / "version_0"
    main(words)
    assert at(run) == 10
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    caplog.clear()
    main(words)
    assert "is finished (step 10; early stopping: Monitored metric val/fvu/all did not improve" in caplog.text
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    # the config is the truth: with more patience, it goes on, and stops later
    words[2] = str(config(tmp_path, callbacks=stopping(patience=2), max_steps=30))
    main(words)
    assert at(run) == 15
    assert RunFolder(run).exported_at == 15
    words[2] = str(config(tmp_path, callbacks=[], max_steps=18))
    main(words)
    assert at(run) == 18


def test_a_death_between_the_stop_and_the_end_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "--config", str(config(tmp_path)), "--ckpt_path", "last"]
    main([*words, "--name", "calm"])
    calm, run = (tmp_path / "runs" / name / "version_0" for name in ("calm", "run"))
    # after steps 2 and 4, before and after the validation of 5, after 6 and 8, before and after that of 10
    assert dies_after(8, monkeypatch, words)
    assert at(run) == 10
    assert not (run / "transcoder").exists()
    main(words)
    assert differences(state(calm / "checkpoints" / LAST), state(run / "checkpoints" / LAST)) == []
    assert RunFolder(run).exported_at == 10
    assert scalars(run)["val/fvu/all"] == scalars(calm)["val/fvu/all"]


def test_at_the_end_of_an_epoch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would look at the end of the epoch, where a resumed run no longer has the validation's numbers."""
    epochs = {"max_steps": -1, "max_epochs": 4, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}
    path = config(tmp_path, **epochs)
    words = ["fit", "--config", str(path), "--ckpt_path", "last", "--model.schedule.decay", "none"]
    words += ["--checkpoints.last_every_n_steps", "null"]
    run = tmp_path / "runs" / "run" / "version_0"
    for writes in (2, 1, 1):  # after the first epoch's validation; before and after the second's
        assert dies_after(writes, monkeypatch, words)
    main(words)
    assert at(run) == 12
    assert len(scalars(run)["val/fvu/all"]) == 2


class StopsInTheMiddle(pl.Callback):
    """As Lightning's `max_time` may."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == 6:  # the first batch of the fourth step
            trainer.should_stop = True


def test_a_stop_waits_for_the_whole_step(tmp_path: Path) -> None:
    callbacks = [{"class_path": "tests.runs.test_stopping.StopsInTheMiddle"}]
    path = config(tmp_path, callbacks=callbacks, accumulate_grad_batches=2, max_steps=8)
    words = ["fit", "--config", str(path), "--ckpt_path", "last"]
    main([*words, "--trainer.callbacks", "null", "--name", "calm"])
    main(words)
    run = tmp_path / "runs" / "run" / "version_0"
    # 6 batches an epoch: 3 steps of the first one
    assert at(run) == 4
    main([*words, "--trainer.callbacks", "null"])
    calm = tmp_path / "runs" / "calm" / "version_0"
    assert differences(state(calm / "checkpoints" / LAST), state(run / "checkpoints" / LAST)) == []


def test_without_checkpoints_a_run_ends_with_all_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_config(tmp_path, data={"init_args": {"num_workers": 0}})
    main(["fit", "--config", str(path), "--trainer.enable_checkpointing=false", "--trainer.max_steps=3"])
    run = RunFolder(tmp_path / "runs" / "run" / "version_0")
    assert "no checkpoint is written, this run cannot be resumed" in caplog.text
    assert not run.checkpoints.exists()
    assert (run.exported_at, run.evaluated_at) == (3, 3)
    assert run.finished

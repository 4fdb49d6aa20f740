"""A disk that is full or read-only, before a fit and in the middle of it: one message, and nothing lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from clt_lightning.cli.main import main
from clt_lightning.runs.folder import LAST
from clt_lightning.runs.resume import find

from .world import differences, state, write_config


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, which only root may mount."""
    root = tmp_path / "disk"
    root.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", root], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield root
    subprocess.run(["umount", "-l", root], check=True)


def fill(root: Path, leave: int = 0) -> None:
    """Leaves so many kilobytes free."""
    (root / "filler").write_bytes(bytes(max(0, shutil.disk_usage(root).free - leave * 1024)))


class Fills(pl.Callback):
    """Fills the disk after a step.

    Args:
        root: where it is mounted.
        step: after which step.
        leave: kilobytes that are left.
    """

    def __init__(self, root: str, step: int, leave: int) -> None:
        self.root, self.step, self.leave = Path(root), step, leave

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            fill(self.root, self.leave)


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    err = capsys.readouterr().err
    assert stopped.value.code == 2, err[-2000:]
    assert "Traceback" not in err, err[-3000:]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err[-2000:]
    return errors[0]


def test_before_it_begins(tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", str(write_config(tmp_path)), "--runs_dir", str(disk / "runs")]
    fill(disk)
    error = told(words, capsys)
    assert "the run cannot be written to" in error
    assert "the disk is full" in error
    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "the file system is read-only" in told(words, capsys)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("leave", [0, 20, 400])
def test_in_the_middle_of_it(tmp_path: Path, disk: Path, leave: int, capsys: pytest.CaptureFixture[str]) -> None:
    fills = {"class_path": f"{__name__}.Fills", "init_args": {"root": str(disk), "step": 3, "leave": leave}}
    config = write_config(
        tmp_path,
        runs_dir=str(disk / "runs"),
        data={"init_args": {"num_workers": 0}},
        trainer={"callbacks": [fills], "max_steps": 7},
    )
    words = ["fit", "--config", str(config), "--ckpt_path", "last"]
    error = told(words, capsys)
    run = disk / "runs" / "run" / "version_0"
    assert str(run) in error
    assert "the disk is full" in error or "took less" in error
    found = find("last", run / "checkpoints")
    assert found is not None
    assert found.step == 2
    assert not list(run.rglob("*.tmp"))
    (disk / "filler").unlink()
    undisturbed = ["--trainer.callbacks", "null"]
    main([*words, *undisturbed])
    main([*words, *undisturbed, "--runs_dir", str(tmp_path / "elsewhere")])
    calm = tmp_path / "elsewhere" / "run" / "version_0"
    assert differences(state(calm / "checkpoints" / LAST), state(run / "checkpoints" / LAST)) == []


def test_where_nothing_but_tensorboard_writes(tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fills = {"class_path": f"{__name__}.Fills", "init_args": {"root": str(disk), "step": 3, "leave": 0}}
    config = write_config(
        tmp_path,
        runs_dir=str(disk / "runs"),
        data={"init_args": {"num_workers": 0}},
        trainer={"callbacks": [fills], "max_steps": 200, "enable_checkpointing": False, "limit_val_batches": 0},
    )
    error = told(["fit", "--config", str(config)], capsys)
    assert str(disk / "runs" / "run" / "version_0") in error
    assert "the disk is full" in error

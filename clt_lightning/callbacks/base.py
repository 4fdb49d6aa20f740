"""What the callbacks share: the run's folder, and the step of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info


def fast_dev_run(trainer: Any) -> bool:
    """Whether this is one of Lightning's trial runs, which write nothing."""
    return bool(trainer.fast_dev_run)


def run_folder(trainer: pl.Trainer) -> Path | None:
    """The folder of this run, `runs/<name>/version_<n>`; None without a logger and under `fast_dev_run`.

    All processes must call it: the answer is process 0's.
    """
    if not trainer.loggers or fast_dev_run(trainer):
        return None
    folder = trainer.log_dir
    return Path(folder) if folder else None


def weights_at(trainer: pl.Trainer) -> tuple[int, int]:
    """Training step and epoch of the weights: Lightning does not read them from a checkpoint that is only evaluated."""
    path = trainer.ckpt_path
    if trainer.state.fn == TrainerFn.FITTING or path is None:
        return trainer.global_step, trainer.current_epoch
    if "://" in str(path):
        checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(path, map_location="cpu", weights_only=True)
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads no weights
    return int(checkpoint.get("global_step", 0)), int(checkpoint.get("epoch", 0))


def say_not_written(trainer: pl.Trainer, what: str) -> None:
    """Tell the user (process 0) that `what` is not written, and why; nothing is skipped in silence."""
    reason = "fast_dev_run" if fast_dev_run(trainer) else "logger=False: the run has no folder"
    rank_zero_info(f"{what} is not written ({reason})")

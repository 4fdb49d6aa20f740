"""What the callbacks share: the run's folder, and one template for everything measured on validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor


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


class Evaluation(pl.Callback):
    """Template: something measured over a whole validation or test split.

    Subclasses write `begin`, `take` and `results`; what `results` returns is logged under `val/` or `test/`, so that
    loggers and `ModelCheckpoint(monitor=...)` see it. The sanity check before training is ignored.
    """

    progress_bar: tuple[str, ...] = ()
    """Names of results that the progress bar shows."""

    def begin(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prepare for a split; called on every process."""
        raise NotImplementedError

    def take(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any) -> None:
        """Take in one batch and what the module's `validation_step` or `test_step` returned for it."""
        raise NotImplementedError

    def results(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
        """The numbers of the split, equal on all processes; called on every process."""
        raise NotImplementedError

    def _log(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for name, value in self.results(trainer, pl_module).items():
            # The metrics are reduced over processes already: the maximum of equal numbers is that number, to the bit.
            pl_module.log(
                f"{stage}/{name}",
                value,
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                reduce_fx="max",
                batch_size=1,
                prog_bar=name in self.progress_bar,
            )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self.take(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.take(trainer, pl_module, outputs, batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(trainer, pl_module, "test")

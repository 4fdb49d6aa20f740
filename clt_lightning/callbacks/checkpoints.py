"""The best and the last checkpoint of a run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from clt_lightning.callbacks.base import fast_dev_run, run_folder
from clt_lightning.errors import UserError


class Checkpoints(ModelCheckpoint):
    """Keeps `best-step<n>.ckpt` and `last.ckpt` in `<run>/checkpoints/`.

    Other than plain `ModelCheckpoint`, `last.ckpt` is always the newest state: it is written after every validation,
    every `last_every_n_steps` steps and at the end of training, whether the monitored number improved or not.

    Args:
        monitor: logged number that decides which checkpoint is best.
        mode: `min` if smaller is better, else `max`.
        keep: how many of the best checkpoints are kept; 0 for none, -1 for all.
        last_every_n_steps: also write `last.ckpt` every so many optimizer steps; null: after validations only.
        dirpath: folder for the checkpoints; null: `checkpoints/` in the run's folder.

    Raises:
        UserError: if `last_every_n_steps` is not positive, or `monitor` is not logged by any callback.
    """

    def __init__(
        self,
        monitor: str = "val/fvu/all",
        mode: str = "min",
        keep: int = 1,
        last_every_n_steps: int | None = None,
        dirpath: str | None = None,
    ) -> None:
        if last_every_n_steps is not None and last_every_n_steps < 1:
            raise UserError(f"Checkpoints.last_every_n_steps must be positive or null, got {last_every_n_steps}")
        super().__init__(
            dirpath=dirpath,
            filename="best-step{step}",
            monitor=monitor,
            mode=mode,
            save_top_k=keep,
            save_last=True,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            # A resumed run goes on in its folder and replaces last.ckpt; last-v1.ckpt would leave a stale last.ckpt.
            enable_version_counter=False,
        )
        self.last_every_n_steps = last_every_n_steps
        self._last_written_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if self.dirpath is None and folder is not None:
            self.dirpath = str(folder / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.last_every_n_steps and trainer.global_step % self.last_every_n_steps == 0:
            self._write_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._writes(trainer) and self.save_top_k != 0 and self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(map(str, trainer.callback_metrics))) or "nothing"
            raise UserError(
                f"Checkpoints.monitor={self.monitor!r} is not logged on validation (logged: {logged}): choose one of "
                "these, or add the callback that logs it (Reconstruction for val/fvu/...)"
            )
        # Written again even if this step has a last.ckpt: now it also knows this validation's outcome.
        self._last_written_at = -1
        super().on_validation_end(trainer, pl_module)
        self._write_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write_last(trainer)

    def _writes(self, trainer: pl.Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not fast_dev_run(trainer)

    def _write_last(self, trainer: pl.Trainer) -> None:
        if not self._writes(trainer) or trainer.global_step in (0, self._last_written_at):
            return
        # The base class takes a checkpoint at this step as a reason not to look for a best one: keep its mark.
        mark = self._last_global_step_saved
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._last_global_step_saved = mark

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._last_written_at = trainer.global_step

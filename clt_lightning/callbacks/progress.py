"""How far a run is: Lightning's progress bar, in the package's one way of telling it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from clt_lightning.callbacks.throughput import Throughput
from clt_lightning.core.people import count, duration
from clt_lightning.core.progress import Progress


def total_steps(trainer: Any) -> int | None:
    """Optimizer steps at whose end training ends, if nothing ends it before; None if nobody knows."""
    limits = []
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        limits.append(int(trainer.max_steps))
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is not None and epochs >= 0 and math.isfinite(batches):
        limits.append(math.ceil(batches / trainer.accumulate_grad_batches) * int(epochs))
    return min(limits, default=None)


class _Steps(Progress):
    """Optimizer steps, with the numbers that say how training goes.

    Attributes:
        numbers: what else is said, such as `loss 0.123`.
    """

    numbers: tuple[str, ...] = ()

    def parts(self) -> list[str]:
        head = f"step {self.done:,}" + (f" of {self.total:,} ({self.percent()})" if self.total else "")
        left = self.left()
        time = [f"about {duration(left)} left"] if left is not None and self.done < (self.total or 0) else []
        return [head, *self.numbers, *time]


class ProgressLine(ProgressBar):
    """Says how far training, validation, test or prediction is.

    On a terminal one line is rewritten; in a log or a pipe there is a line every few per cent, at least every
    `throughput.progress_every_seconds`. All on standard output, from process 0. On a terminal loss and L0 are those of
    the last step that was logged (`trainer.log_every_n_steps`): asking for others would make a GPU wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._steps: _Steps | None = None
        self._batches: Progress | None = None
        self._throughput: Throughput | None = None
        self._loss: float | None = None
        self._first = True

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._throughput = next((c for c in callbacks if isinstance(c, Throughput)), None)
        if self._throughput is not None:
            self._throughput.speaks = False

    # -- training ----------------------------------------------------------------------------------------------------
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._shown:
            return
        self._first, self._loss = True, None
        self._steps = _Steps(
            "training",
            total_steps(trainer),
            "steps",
            done=trainer.global_step,
            show=self._shown,
            stream="stdout",
            sums_up=False,
        )
        if self._throughput is not None:
            self._steps.longest = self._throughput.progress_every_seconds or math.inf

    def on_train_batch_end(
        self, trainer: Any, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = self._steps
        if steps is None or trainer.global_step == steps.done:
            return
        every = trainer.log_every_n_steps
        told = self._first or (bool(every) and trainer.global_step % every == 0)
        if self._first:  # it allocates and compiles: no measure of those that follow
            self._first = False
            steps.restart(trainer.global_step)
        free = not steps.live or pl_module.device.type == "cpu"  # lines are rare enough
        if told or (free and steps.is_due()):
            if isinstance(outputs, Mapping) and "loss" in outputs:
                # what Lightning hands on is divided by the batches of a step
                self._loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            steps.numbers = tuple(self._numbers(trainer))
        steps.to(trainer.global_step)
        if steps.total and trainer.global_step >= steps.total:  # what follows is no training
            self._close_steps()

    def _numbers(self, trainer: Any) -> list[str]:
        numbers = [] if self._loss is None else [f"loss {self._loss:.3g}"]
        l0 = trainer.callback_metrics.get("train/l0")
        if l0 is not None:
            numbers.append(f"L0 {float(l0):.1f}")
        speed = 0.0 if self._throughput is None else self._throughput.tokens_per_second
        return numbers + ([f"{count(speed)} tokens/s"] if speed else [])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    # -- batches of a split ------------------------------------------------------------------------------------------
    def _begin(self, what: str, batches: Any, sums_up: bool | None = None) -> None:
        number = sum(batches) if isinstance(batches, list) else batches
        total = int(number) if math.isfinite(number) else None
        self._batches = Progress(what, total, "batches", show=self._shown, stream="stdout", sums_up=sums_up)

    def _advance(self) -> None:
        if self._batches is not None:
            self._batches.update()
            if self._batches.done == self._batches.total:  # what is computed from them now is other work
                self._end()

    def _end(self, failed: bool = False) -> None:
        if self._batches is not None:
            self._batches.close(failed)
            self._batches = None

    def on_validation_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            self._begin("sanity check", trainer.num_sanity_val_batches, sums_up=False)
        else:
            at = f" at step {trainer.global_step:,}" if trainer.state.fn == TrainerFn.FITTING else ""
            self._begin(f"validation{at}", trainer.num_val_batches, sums_up=False)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    # the last of the callbacks: those before it may have gone through training images here
    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("test", trainer.num_test_batches)

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_predict_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._begin("prediction", trainer.num_predict_batches)

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    # -- whatever happens --------------------------------------------------------------------------------------------
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        self._end(failed=True)
        self._close_steps()

    def _close_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None

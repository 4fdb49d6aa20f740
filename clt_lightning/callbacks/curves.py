"""Points of the validation's curves between two validations."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from clt_lightning import compat
from clt_lightning.callbacks.base import fast_dev_run
from clt_lightning.callbacks.checkpoints import Checkpoints
from clt_lightning.callbacks.measuring import SplitPass, measuring
from clt_lightning.callbacks.throughput import Throughput
from clt_lightning.core.errors import UserError
from clt_lightning.training.batches import as_batch


class Curves(pl.Callback):
    """Measures a few images of the validation split every so many steps, and logs what validations log.

    Curves under `val/` then have a point every `every_n_steps` steps at a small part of a validation's price: always
    the same images, evenly spaced over the split, held in memory. Validations (`trainer.val_check_interval`) go on as
    they are, on the whole split, and they alone choose the best checkpoint, stop a run early and stand in results.json.
    `dead` is left out: over a few images features that are only rare look dead.

    Args:
        every_n_steps: optimizer steps between two points; 0 measures at validations alone.
        images: images of the split, of all processes together.

    Raises:
        UserError: on a negative number of steps, or no images.
    """

    def __init__(self, every_n_steps: int = 0, images: int = 256) -> None:
        if every_n_steps < 0 or images < 1:
            raise UserError(
                f"curves: every_n_steps must be 0 or more and images at least 1, got {every_n_steps} and {images}"
            )
        self.every_n_steps, self.images = every_n_steps, images
        self._batches: list[dict[str, Any]] | None = None
        self._measured_at = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches, self._measured_at = None, trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or step == self._measured_at:
            return
        if not compat.whole_step(trainer) or not self._wanted(trainer, step):
            return
        self._measured_at = step
        numbers = self._measure(trainer, pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.leave_out(pl_module.device)
        if not trainer.is_global_zero or not numbers:
            return
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"val/{name}": value for name, value in numbers.items()}, step - 1
            )  # as Lightning counts a validation after this step
        trainer.print(f"step {step:,}: {', '.join(_words(numbers))} ({self.images:,} images)", flush=True)

    def _wanted(self, trainer: pl.Trainer, step: int) -> bool:
        """Whether no validation of this step follows, and there is something to measure and a place to log it."""
        if fast_dev_run(trainer) or not trainer.loggers or not trainer.enable_validation:
            return False
        at_the_end = step == trainer.max_steps and any(isinstance(c, Checkpoints) for c in trainer.callbacks)  # type: ignore[attr-defined]
        return not at_the_end and not compat.validation_follows(trainer)

    @torch.no_grad()
    def _measure(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        if self._batches is None:
            self._batches = self._load(trainer)
        if not measuring(trainer):
            return {}
        pl_module.transcoder.eval()
        try:
            measured = SplitPass(trainer, pl_module)
            for held in self._batches:
                batch = trainer.strategy.batch_to_device(held)
                with trainer.precision_plugin.val_step_context():
                    outputs = pl_module.evaluate_batch(batch)
                measured.take(trainer, outputs, batch)
            return {name: value for name, value in measured.numbers().items() if not name.startswith("dead/")}
        finally:
            pl_module.transcoder.train()

    def _load(self, trainer: pl.Trainer) -> list[dict[str, Any]]:
        data = getattr(trainer, "datamodule", None)
        spaced = getattr(data, "eval_dataloader", None)
        if spaced is not None and data is not None and data.split("val") is not None:
            return [as_batch(batch) for batch in spaced("val", limit=self.images)]
        loader: Any = trainer.val_dataloaders
        if isinstance(loader, dict):
            loader = list(loader.values())
        wanted = -(-self.images // trainer.world_size)
        batches: list[dict[str, Any]] = []
        for batch in (loader[0] if isinstance(loader, list | tuple) else loader) or []:
            batches.append(as_batch(batch))
            wanted -= len(batches[-1]["image"])
            if wanted <= 0:
                break
        return batches


def _words(numbers: dict[str, float]) -> list[str]:
    """The numbers that a reader of the terminal wants."""
    words = []
    for name, text in (("fvu/all", "FVU {:.4f}"), ("l0/all", "L0 {:.1f}")):
        if name in numbers:
            words.append(text.format(numbers[name]))
    replaced = [value for name, value in numbers.items() if name.startswith("zero_shot/replaced/")]
    if replaced and "zero_shot/original" in numbers:
        original = numbers["zero_shot/original"]
        words.append(f"zero-shot {100 * replaced[0]:.1f} % replaced, {100 * original:.1f} % original")
    return words or [f"{len(numbers)} numbers"]

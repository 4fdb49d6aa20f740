"""Validation and test as one suite: the callbacks that measure name analyses, and every image is run once for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from clt_lightning.analysis.reconstruction import ReconstructionErrors
from clt_lightning.analysis.results import by_layer, shares_json, units_json
from clt_lightning.analysis.statistics import Measured, zero_shot
from clt_lightning.analysis.suite import Analysis, Subject, Suite
from clt_lightning.analysis.tags import tags
from clt_lightning.callbacks.base import fast_dev_run
from clt_lightning.core.progress import track
from clt_lightning.metrics import metric_device

#: Shown by the progress bar
_SHOWN = ("fvu/all",)


class Measuring(pl.Callback):
    """Template: something measured over a whole validation or test split.

    Subclasses write `analyses`. The first of the trainer's callbacks of this kind runs the analyses of all as one
    suite; what they find is logged under `val/` or `test/`, so that loggers and `ModelCheckpoint(monitor=...)` see it.
    The sanity check before training is ignored.
    """

    head: Tensor | None = None
    """`(embed_dim, classes)` of the split that is being measured, from the one that makes it."""

    stored: frozenset[str] = frozenset()
    """Tags of the last test that this one has written into results.json itself."""

    _pass: SplitPass | None = None

    def analyses(self, trainer: pl.Trainer, pl_module: Any) -> list[Analysis]:
        """What is measured on the split that begins now; called on every process."""
        raise NotImplementedError

    def takes_over(self, stage: str) -> bool:
        """Whether this one measures a stage (`val`, `test`) for all of them."""
        return False

    def found(self, entry: Mapping[str, Any]) -> None:
        """Told what all have measured (`tags.tags`); called on every process."""

    def _begin(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self._pass = None
        everyone = measuring(trainer)
        if everyone[0] is self and not any(callback.takes_over(stage) for callback in everyone):
            self._pass = SplitPass(trainer, pl_module)

    def _take(self, trainer: pl.Trainer, outputs: Any, batch: Any) -> None:
        if self._pass is not None:
            self._pass.take(trainer, outputs, batch)

    def _end(self, pl_module: Any, stage: str) -> None:
        if self._pass is not None:
            log_all(pl_module, stage, self._pass.numbers())
            self._pass = None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin(trainer, pl_module, "val")

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
            self._take(trainer, outputs, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._end(pl_module, "val")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._take(trainer, outputs, batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(pl_module, "test")


class SplitPass:
    """One pass over a split, with the analyses of all callbacks that measure in one suite.

    Args:
        trainer: whose callbacks.
        pl_module: what is evaluated; it is told what every forward must keep.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._callbacks = measuring(trainer)
        found = [analysis for callback in self._callbacks for analysis in callback.analyses(trainer, pl_module)]
        head = next((c.head for c in self._callbacks if c.head is not None), None)
        names = [str(n) for n in range(0 if head is None else head.shape[1])]
        subject = Subject(pl_module.clip, pl_module.transcoder, head, names, attention=pl_module.attention)
        self._suite = Suite(subject, found)
        pl_module.needs = self._suite.needs

    def take(self, trainer: pl.Trainer, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Take in a batch, and what the module made of it."""
        if not len(batch["image"]):
            return
        # samples may have one key: here nothing is sorted by it
        data = {name: value for name, value in batch.items() if name in ("image", "label")}
        # the transcoder must run in the precision that the validation step gave it
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            self._suite.update(data, outputs["seen"], outputs["codes"], outputs["y_hat"])

    def numbers(self) -> dict[str, float]:
        """What is logged, by tag without the stage; equal on all processes, all of which must call this."""
        found, clt = self._suite.results(), self._suite.subject.clt
        entry: dict[str, Any] = {"shares": {}}
        if (tables := found.get(ReconstructionErrors.name)) is not None:
            entry["reconstruction"] = {kind: by_layer(values) for kind, values in tables.items()}
            entry["shares"] = {"skip": clt.skip, "features": by_layer(tables.get("share", {}))}
        if (units := found.get("attention")) is not None:
            entry["attention"] = units_json(units)
        measured: Measured | None = found.get("arms")
        if measured is not None:
            entry["zero_shot"] = {"arms": [arm.to_json() for arm in zero_shot(measured, 0, 0)]}
        if (logit := found.get("logit")) is not None:
            entry["shares"]["logit"] = shares_json(logit)
        for callback in self._callbacks:
            callback.found(entry)
        return tags(entry)


def measuring(trainer: pl.Trainer) -> list[Measuring]:
    """The trainer's callbacks that measure."""
    return [c for c in trainer.callbacks if isinstance(c, Measuring)]  # type: ignore[attr-defined]


def log_all(pl_module: Any, stage: str, numbers: Mapping[str, float]) -> None:
    """Logs numbers of a split that are equal on all processes."""
    device = metric_device(pl_module.device)
    for name, value in numbers.items():
        # the maximum of equal numbers is that number, to the bit
        pl_module.log(
            f"{stage}/{name}",
            torch.tensor(value, dtype=torch.float64, device=device),
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            reduce_fx="max",
            batch_size=1,
            prog_bar=name in _SHOWN,
        )


def training_batches(trainer: Any, images: int) -> Iterator[Any] | None:
    """About so many training images, evenly spaced over the split, on the device; None where there are none to read."""
    data = getattr(trainer, "datamodule", None)
    loader = getattr(data, "eval_dataloader", None)
    if not images or loader is None or data is None or data.split("train") is None:
        return None
    wanted = min(images, 64) if fast_dev_run(trainer) else images  # a trial run shall end soon
    shows = trainer.is_global_zero and trainer.progress_bar_callback is not None
    batches = track(loader("train", limit=wanted), "training images", unit="batches", show=shows)
    return (trainer.strategy.batch_to_device(batch) for batch in batches)

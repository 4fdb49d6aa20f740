"""Who decides: what each part of the model adds to the margin over the runner-up, on validation and test."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from clt_lightning.analysis.shares import PARTS, TARGETS, LogitShares, measurable
from clt_lightning.analysis.tower import at_all_mlps, observe
from clt_lightning.callbacks.base import Evaluation
from clt_lightning.callbacks.zero_shot import ZeroShot
from clt_lightning.core.errors import UserError
from clt_lightning.metrics import ExactMetric, metric_device


class _Sums(ExactMetric):
    """Sums over images of what each part adds."""

    parts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("parts", torch.zeros(len(PARTS), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, parts: Tensor) -> None:
        self.parts += parts.double().sum(0).to(self.parts.device)

    def compute(self) -> Tensor:
        return self.parts


class Shares(Evaluation):
    """Logs `<stage>/share/margin/<part>`: the part's share of the mean margin between the predicted class and the
    runner-up, for `embedding`, `attention`, `features`, `skip`, `bias`, `error` and `norm_bias`; they sum to 1.

    It takes the class names of `ZeroShot`, and is silent where that measures nothing, the embedding is not read from
    [CLS], or the transcoder does not stand at all MLPs. Every image that it looks at costs a forward of the CLIP: of a
    large split it takes every n-th batch.

    Args:
        images: about so many images of the split, of all processes together; 0 measures nothing.

    Raises:
        UserError: on a negative number.
    """

    def __init__(self, images: int = 256) -> None:
        if images < 0:
            raise UserError(f"shares.images must be 0 or more, got {images}")
        self.images = images
        self._shares: LogitShares | None = None
        self._sums: _Sums | None = None
        self._stride, self._seen = 1, 0

    def begin(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._shares = self._sums = None
        heads = [c.head for c in trainer.callbacks if isinstance(c, ZeroShot)]  # type: ignore[attr-defined]
        head = next((head for head in heads if head is not None), None)
        clip, clt = pl_module.clip, pl_module.transcoder
        if not self.images or not at_all_mlps(clip, clt) or not measurable(clip, head):
            return
        self._shares = LogitShares(clip, clt, head)
        self._sums = _Sums().to(metric_device(pl_module.device))
        self._seen, self._stride = 0, 0

    def take(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any) -> None:
        if self._shares is None:
            return
        assert self._sums is not None
        images = batch["image"]
        if not self._stride:  # a training that looks at a few images only has chosen them already
            counts = {"validate": trainer.num_val_batches, "test": trainer.num_test_batches}.get(_stage(trainer), [])
            whole = sum(int(n) for n in counts if n != float("inf")) * len(images) * trainer.world_size
            self._stride = max(1, whole // self.images)
        self._seen += 1
        if (self._seen - 1) % self._stride == 0:
            with torch.no_grad():
                parts = self._shares.parts(observe(pl_module.clip, images, clt=pl_module.transcoder), outputs["y_hat"])
            self._sums.update(parts[:, TARGETS.index("margin")])

    def results(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
        if self._sums is None:
            return {}
        parts = self._sums.compute()
        return {f"share/margin/{name}": value for name, value in zip(PARTS, parts / parts.sum())}


def _stage(trainer: pl.Trainer) -> str:
    """`validate` also for the validations of a fit."""
    return "validate" if trainer.validating else "test" if trainer.testing else ""

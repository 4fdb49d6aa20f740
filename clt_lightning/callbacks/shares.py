"""Who decides: what each part of the model adds to the margin over the runner-up, on validation and test."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from clt_lightning.analysis.measures import LogitParts
from clt_lightning.analysis.shares import measurable
from clt_lightning.analysis.suite import Analysis
from clt_lightning.analysis.tower import at_all_mlps
from clt_lightning.callbacks.measuring import Measuring, measuring
from clt_lightning.core.errors import UserError


class Shares(Measuring):
    """Logs `<stage>/share/margin/<part>`: the part's share of the mean margin between the predicted class and the
    runner-up, for `embedding`, `attention`, `features`, `skip`, `bias`, `error` and `norm_bias`; they sum to 1.

    It takes the class names of `ZeroShot`, and is silent where that measures nothing, the embedding is not read from
    [CLS], or the transcoder does not stand at all MLPs. Of a large split it takes every n-th batch; `test` takes all.

    Args:
        images: about so many images of the split, of all processes together; 0 measures nothing.

    Raises:
        UserError: on a negative number.
    """

    def __init__(self, images: int = 256) -> None:
        if images < 0:
            raise UserError(f"shares.images must be 0 or more, got {images}")
        self.images = images

    def analyses(self, trainer: pl.Trainer, pl_module: Any) -> list[Analysis]:
        head = next((c.head for c in measuring(trainer) if c.head is not None), None)
        clip, clt = pl_module.clip, pl_module.transcoder
        if not self.images or not at_all_mlps(clip, clt) or not measurable(clip, head):
            return []
        # a training that looks at a few images between validations has chosen them already: of these all
        counts = trainer.num_val_batches if trainer.validating else trainer.num_test_batches if trainer.testing else []
        return [LogitParts(self.images, trainer.world_size * sum(n for n in counts if n != float("inf")))]

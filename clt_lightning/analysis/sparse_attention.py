"""What sparse attention is worth beside a run's transcoder: reconstruction, cascade, and the heads that units span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.arm_table import Arms
from clt_lightning.analysis.arms import ORIGINAL, Arm, ArmRunner, attention_arms
from clt_lightning.analysis.attention_heads import Spans
from clt_lightning.analysis.attention_units import AttentionMeans, AttentionUnits, UnitsResult
from clt_lightning.analysis.intervals import Interval
from clt_lightning.analysis.run import Run
from clt_lightning.analysis.statistics import zero_shot
from clt_lightning.analysis.suite import Subject, Suite
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.core.progress import Progress
from clt_lightning.transcoder.attention import AnyAttention

DRAWS = 1000
#: What the arms are called, by kind
ARMS = {
    "original": "original",
    "replaced": "MLPs",
    "attention": "attention",
    "with_attention": "MLPs and attention",
    "attention_mean": "attention at its mean",
}


@dataclass(frozen=True)
class AttentionReport:
    """What was measured.

    Attributes:
        split: of the data; `images`: how many labelled ones of it.
        fvu, l0: `(layers,)` of `attn_out` on the untouched model.
        top1: by arm, `original` first.
        lost: by arm, top-1 of the original less the arm's, paired.
        spans: heads that units span; None where the output of attention is no sum over heads.
    """

    split: str
    images: int
    fvu: Tensor
    l0: Tensor
    top1: dict[str, Interval]
    lost: dict[str, Interval]
    spans: Spans | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "split": self.split,
            "images": self.images,
            "fvu": finite(self.fvu.tolist()),
            "l0": finite(self.l0.tolist()),
            "top1": {name: value.to_json() for name, value in self.top1.items()},
            "lost": {name: value.to_json() for name, value in self.lost.items()},
            "spans": None if self.spans is None else self.spans.numbers(),
        }


@torch.no_grad()
def measure(
    run: Run,
    attention: AnyAttention,
    *,
    split: str = "test",
    limit: int | None = None,
    mean_images: int = 1024,
    seed: int = 0,
    progress: bool = False,
) -> AttentionReport:
    """Reconstruction on the untouched model, accuracy in cascade, and spans, on a split of a run's data.

    The same numbers as `test` gives of units that were trained with the run. Arms: every MLP replaced by the run's
    transcoder; every attention by the units; both; and what units must beat, every attention set to its mean at each
    position.

    Args:
        run: with a transcoder of the MLPs, and class logits.
        attention: for the run's backbone.
        split: of the data.
        limit: images of it, evenly spaced; None for all.
        mean_images: training images behind the means.
        seed: of the bootstrap.
        progress: say how far it is.

    Raises:
        UserError: no labelled images, no class logits, or units of another backbone.
    """
    clip, clt, head = run.clip, run.transcoder, run.require_head("no accuracy to compare")
    subject = Subject(clip, clt, head, run.datamodule.classnames, DRAWS, seed, attention)
    training = AttentionMeans()
    reading = Suite(subject, [training])
    for batch in run.batches("train", limit=mean_images):
        reading.take(batch | {"image": batch["image"].to(clip.device)})
    means = training.result()
    if means is None:
        raise UserError("no training images: there are no mean outputs of attention")
    arms = [ORIGINAL, Arm("replaced", 0, clt.n_layers - 1, "all"), *attention_arms(clip.n_layers)]
    runner = ArmRunner(clip, clt, attention=attention, attention_means=means.to(clip.device))
    suite = Suite(subject, [AttentionUnits(["all"], spans=True), Arms(runner, arms)])
    with Progress("sparse attention", limit, "images", show=progress) as bar:
        for batch in run.batches(split, limit=limit):
            suite.take(batch | {"image": batch["image"].to(clip.device)})
            bar.update(len(batch["image"]))
    found = suite.results()
    measured = zero_shot(found["arms"], DRAWS, seed) if len(found["arms"].keys) else []
    if not measured or not measured[0].n:
        raise UserError(f"split {split!r} has no labelled images: there is no accuracy to compare")
    units: UnitsResult = found["attention"]
    return AttentionReport(
        split,
        measured[0].n,
        units.tables["fvu"]["all"],
        units.tables["l0"]["all"],
        top1={ARMS[result.arm.kind]: result.top1 for result in measured},
        lost={ARMS[result.arm.kind]: result.drop for result in measured},
        spans=units.spans,
    )

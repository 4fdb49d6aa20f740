"""From one row an image to the split's numbers and their intervals."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clt_lightning.analysis import multilabel as several
from clt_lightning.analysis.arms import Arm
from clt_lightning.analysis.crossmodal import RetrievalResult, retrieval_result
from clt_lightning.analysis.intervals import NOTHING, mean_intervals, recall_interval
from clt_lightning.analysis.population import PopulationCheck, mean_check, outlier_check, resample_counts
from clt_lightning.analysis.reference import Reference
from clt_lightning.analysis.results import ArmResult
from clt_lightning.analysis.table import NOT_RUN


@dataclass(frozen=True)
class Measured:
    r"""The rows of a split.

    Attributes:
        arms: what was run.
        classnames: class names.
        keys: `(n,)` images.
        columns: arrays `(n, ...)`; those of arms are `(n, arms, ...)`.
        captions: keys `<image>\t<number>` of the captions and their columns.
    """

    arms: list[Arm]
    classnames: list[str]
    keys: np.ndarray = field(repr=False)
    columns: dict[str, np.ndarray] = field(repr=False)
    captions: tuple[np.ndarray, dict[str, np.ndarray]] = field(repr=False)

    @property
    def whole_arms(self) -> list[Arm]:
        """The arms that were run on all images, whose embeddings and cosines were kept."""
        return [arm for arm in self.arms if not arm.sampled]

    def column(self, name: str) -> np.ndarray:
        """`(arms, n)`; empty where it was not measured."""
        found = self.columns.get(name)
        return np.empty((0, len(self.keys))) if found is None else np.ascontiguousarray(found.T)


def zero_shot(measured: Measured, draws: int, seed: int) -> list[ArmResult]:
    """Accuracies and KL of every arm; arms that were run on the same images are resampled together."""
    ranks = measured.column("rank")
    if not len(ranks):
        return []
    found: dict[int, ArmResult] = {}
    run = ranks != NOT_RUN
    groups: dict[bytes, list[int]] = {}
    for index, here in enumerate(run):
        groups.setdefault(here.tobytes(), []).append(index)
    for arms in groups.values():
        found |= dict(zip(arms, _arms_on(measured, arms, run[arms[0]], draws, seed)))
    return [found[index] for index in range(len(measured.arms))]


def _arms_on(measured: Measured, arms: list[int], images: np.ndarray, draws: int, seed: int) -> list[ArmResult]:
    """The results of some arms on some images `(n,)` bool, beside the original on the same ones."""
    ranks = measured.column("rank")[:, images]
    labels = measured.columns["labels"][images]
    known = labels >= 0
    n, n_classes = int(known.sum()), len(measured.classnames)
    right = ranks[:, known] == 0
    five = (ranks[arms][:, known] >= 0) & (ranks[arms][:, known] < min(5, n_classes))
    drop = right[:1].astype(np.int8) - right[arms].astype(np.int8)
    shares = mean_intervals(np.concatenate([right[arms], five, drop]).T.astype(np.float64), draws, seed)
    divergence = mean_intervals(measured.column("kl")[arms][:, images].T, draws, seed)
    count = np.bincount(labels[known], minlength=n_classes)
    out = []
    for place, index in enumerate(arms):
        hits = np.bincount(labels[known][right[index]], minlength=n_classes)
        recall = np.where(count > 0, hits / np.maximum(count, 1), np.nan)
        out.append(
            ArmResult(
                measured.arms[index],
                n,
                top1=shares[place],
                top5=shares[len(arms) + place],
                per_class_recall=recall_interval(hits, count, draws, seed) if n else NOTHING,
                recall=recall,
                kl=divergence[place],
                drop=shares[2 * len(arms) + place],
            )
        )
    return out


def multilabel(measured: Measured, draws: int, seed: int) -> list[several.MultilabelResult]:
    """Average precision and top-1 hits of every arm, where images have several categories."""
    if "multi_hot" not in measured.columns:
        return []
    cosines, present = measured.columns["cosines"], measured.columns["multi_hot"]
    return [
        several.multilabel_result(arm, cosines[:, index], present, draws, seed)
        for index, arm in enumerate(measured.whole_arms)
    ]


def retrieval(measured: Measured, draws: int, seed: int) -> list[RetrievalResult]:
    """Recall at 1 and 5 of every arm, over the images with captions."""
    names, columns = measured.captions
    if not len(names):
        return []
    owners = np.array([name.rsplit("\t", 1)[0] for name in names])
    captioned, owner = np.unique(owners, return_inverse=True)
    rows = np.searchsorted(measured.keys, captioned)
    embeddings = measured.columns["embeddings"][rows]
    return [
        retrieval_result(arm, embeddings[:, index], columns["embeddings"], owner, draws, seed)
        for index, arm in enumerate(measured.whole_arms)
    ]


def population(
    measured: Measured,
    reference: Reference | None,
    held_out_images: dict[str, np.ndarray],
    arm: Arm | None,
    fvu: float,
    resamples: int,
    seed: int,
) -> list[PopulationCheck]:
    """FVU, L0, outliers, KL and accuracy drop held out against resamples of the training images.

    Args:
        measured: the split's rows.
        reference: what is known of training images.
        held_out_images: of `reference.HeldOutImages`.
        arm: of which KL and accuracy drop are taken.
        fvu: of the split.
        resamples: how many.
        seed: of the draws.
    """
    if reference is None or reference.n_images < 2:
        return []
    counts = resample_counts(reference.n_images, len(measured.keys), resamples, seed)
    own = float(reference.sums.fvu(np.ones((1, reference.n_images)))[0])
    checks = [PopulationCheck("fvu", "all", None, None, fvu, own, np.sort(reference.sums.fvu(counts)))]
    errors = [reference.sums.image_fvu(found) for found in (held_out_images["error"], reference.sums.error)]
    checks.append(mean_check("l0", "all", (None, None), held_out_images["l0"], reference.l0, counts))
    checks.append(outlier_check(errors[0], errors[1], counts))
    if arm is None or reference.kl is None or reference.drop is None or arm not in measured.arms:
        return checks
    index = measured.arms.index(arm)
    window = (arm.first, arm.last)
    checks.append(mean_check("kl", "all", window, measured.column("kl")[index], reference.kl, counts))
    ranks = measured.column("rank")
    held_out = np.where(ranks[0] < 0, np.nan, (ranks[0] == 0) * 1.0 - (ranks[index] == 0))
    if not (np.isnan(held_out).all() or np.isnan(reference.drop).all()):
        checks.append(mean_check("accuracy_drop", "all", window, held_out, reference.drop, counts))
    return checks

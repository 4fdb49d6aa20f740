"""Images with several categories (COCO): average precision and top-1 hits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clt_lightning.analysis.arms import Arm
from clt_lightning.analysis.intervals import Interval, weighted_interval
from clt_lightning.core.files import finite


@dataclass(frozen=True)
class MultilabelResult:
    """One arm on a set with several categories an image.

    Attributes:
        arm: which variant.
        n: images with at least one category.
        map: mean over the categories that occur of their average precision.
        average_precision: `(C,)`, NaN for categories that do not occur.
        top1_hit: share of images whose top category is among theirs.
    """

    arm: Arm
    n: int
    map: Interval
    average_precision: np.ndarray
    top1_hit: Interval

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return arm_json(self.arm) | {
            "n": self.n,
            "map": self.map.to_json(),
            "average_precision": finite(self.average_precision.tolist()),
            "top1_hit": self.top1_hit.to_json(),
        }


def arm_json(arm: Arm) -> dict[str, Any]:
    """An arm's names, as every table row begins."""
    return {"kind": arm.kind, "first": arm.first, "last": arm.last, "tokens": arm.tokens}


def average_precision(scores: np.ndarray, present: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of every category, for weighted images: `sum over thresholds of (R_n - R_{n-1}) P_n`.

    Images with equal scores share a threshold, so that their order does not matter (the definition of scikit-learn).

    Args:
        scores: `(n, C)`.
        present: `(n, C)` bool.
        weights: `(draws, n)`, ones for the plain number.

    Returns:
        `(draws, C)`, NaN for categories without a positive image.
    """
    out = np.full((len(weights), scores.shape[1]), np.nan)
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked = scores[order, c]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        w = weights[:, order].astype(np.float64)
        taken = np.cumsum(w, 1)[:, ends]
        hits = np.cumsum(w * present[order, c], 1)[:, ends]
        total = hits[:, -1:]
        gained = np.diff(hits, axis=1, prepend=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(taken > 0, hits / taken, 0.0)
            out[:, c] = np.where(total[:, 0] > 0, (gained * precision).sum(1) / total[:, 0], np.nan)
    return out


def multilabel_result(arm: Arm, scores: np.ndarray, multi_hot: np.ndarray, draws: int, seed: int) -> MultilabelResult:
    """Average precision and top-1 hit of one arm.

    Args:
        arm: which variant.
        scores: `(n, C)` cosines.
        multi_hot: `(n, C)`.
        draws: resamples; average precision takes at most 200 of them, since every one sorts anew.
        seed: their seed.
    """
    present = multi_hot > 0
    any_present = present.any(1)
    hit = present[np.arange(len(scores)), scores.argmax(1)][any_present]
    n = len(scores)

    def mean_ap(weights: np.ndarray) -> np.ndarray:
        ap = average_precision(scores, present, weights)
        occurs = ~np.isnan(ap)
        result: np.ndarray = np.where(occurs, ap, 0).sum(1, keepdims=True) / np.maximum(occurs.sum(1, keepdims=True), 1)
        return result

    (interval_map,) = weighted_interval(n, mean_ap, min(draws, 200), seed)

    def hits(weights: np.ndarray) -> np.ndarray:
        result: np.ndarray = (weights @ hit.astype(np.float64) / weights.sum(1))[:, None]
        return result

    (top1_hit,) = weighted_interval(len(hit), hits, draws, seed)
    own = average_precision(scores, present, np.ones((1, n)))[0]
    return MultilabelResult(arm, int(any_present.sum()), interval_map, own, top1_hit)

"""Bootstrap intervals over images (Efron 1979, percentile method)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clt_lightning.core.files import finite

LEVEL = 0.95
_CHUNK = 1 << 24  # weights held at once


@dataclass(frozen=True)
class Interval:
    """A number with its bootstrap interval; NaN where there is nothing to count.

    Attributes:
        value: the number on the split itself.
        low: lower end of the 95 % interval.
        high: its upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers, None for NaN."""
        return {name: finite(float(getattr(self, name))) for name in ("value", "low", "high")}


NOTHING = Interval(math.nan, math.nan, math.nan)


def interval(value: float, draws: np.ndarray) -> Interval:
    """A value with the quantiles of its bootstrap draws; draws that are NaN (an empty class) do not count."""
    draws = np.asarray(draws, dtype=float)
    draws = draws[~np.isnan(draws)]
    if not len(draws) or math.isnan(value):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def resample_weights(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn in each resample of size n, in chunks `(some draws, n)` float32."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(n, 1))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        picks = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)


def mean_draws(columns: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means `(columns,)` of `(n, columns)`, and those of resamples `(draws, columns)`, the same rows in all columns."""
    n = len(columns)
    wide = columns.astype(np.float64)
    own = wide.mean(0)
    resampled = [w.astype(np.float64) @ wide / n for w in resample_weights(n, draws, seed)]
    return own, np.concatenate(resampled) if resampled else np.empty((0, len(own)))


def mean_intervals(columns: np.ndarray, draws: int, seed: int) -> list[Interval]:
    """Intervals of the means of columns `(n, columns)`, all on the same resamples; without draws the means alone."""
    if len(columns) == 0:
        return [NOTHING] * columns.shape[1]
    own, drawn = mean_draws(columns, draws, seed)
    return [interval(float(value), column) for value, column in zip(own, drawn.T)]


def share_interval(successes: float, n: int, draws: int, seed: int) -> Interval:
    """Interval of a share from its counts alone: resampling n yes-or-no images draws from a binomial distribution."""
    if n == 0:
        return NOTHING
    share = float(successes) / n
    return interval(share, np.random.default_rng(seed).binomial(n, min(max(share, 0.0), 1.0), draws) / n)


def recall_interval(right: np.ndarray, count: np.ndarray, draws: int, seed: int) -> Interval:
    """Interval of the mean recall over the classes that occur.

    Args:
        right: `(classes,)` images of each class that were right.
        count: `(classes,)` images of each class.
        draws: resamples.
        seed: seed of the draws.
    """
    n = int(count.sum())
    if n == 0:
        return NOTHING
    # resampling images is a multinomial draw of the cells (class, right or wrong)
    cells = np.stack([right, count - right], 1).reshape(-1).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(n, cells / n, draws).reshape(draws, len(count), 2)
    totals = drawn.sum(2)
    recalls = np.where(totals > 0, drawn[:, :, 0] / np.maximum(totals, 1), np.nan)
    occurs = count > 0
    return interval(float((right[occurs] / count[occurs]).mean()), np.nanmean(recalls[:, occurs], 1))


def weighted_interval(n: int, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int) -> list[Interval]:
    """Intervals of any statistics of weighted images.

    Args:
        n: number of images.
        statistic: weights `(some draws, n)` to values `(some draws, statistics)`.
        draws: resamples.
        seed: seed of the draws.
    """
    own = statistic(np.ones((1, n), dtype=np.float32))[0]
    if n == 0:
        return [NOTHING] * len(own)
    resampled = np.concatenate([statistic(w) for w in resample_weights(n, draws, seed)])
    return [interval(float(value), column) for value, column in zip(own, resampled.T)]

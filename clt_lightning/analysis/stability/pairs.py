"""A number of every two of several runs: its mean, and how sure that is although pairs share runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clt_lightning.core.files import finite


@dataclass(frozen=True)
class Spread:
    """A number over pairs of runs.

    Attributes:
        value: mean over pairs.
        low: lower end of the 95 % interval over runs; NaN below three runs, and of runs that are no sample.
        high: its upper end.
        least: the smallest of all pairs.
        most: the largest.
        pairs: how many there are.
    """

    value: float
    low: float
    high: float
    least: float
    most: float
    pairs: int

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers, None for NaN."""
        return {name: finite(getattr(self, name)) for name in ("value", "low", "high", "least", "most", "pairs")}


def over_pairs(values: Sequence[float], pairs: Sequence[tuple[int, int]], runs: int, interval: bool = True) -> Spread:
    """The mean over pairs with a jackknife interval over runs.

    Pairs share runs and are not independent, so runs are left out, one at a time (delete-one jackknife of a U-statistic
    of order two), with Student's t for runs - 1 degrees of freedom.

    Args:
        values: one per pair; NaN ones do not count.
        pairs: numbers of the two runs of each.
        runs: how many runs there are.
        interval: False where the runs are no sample, so that there is none.
    """
    known = [(value, pair) for value, pair in zip(values, pairs, strict=True) if not np.isnan(value)]
    nan = float("nan")
    if not known:
        return Spread(nan, nan, nan, nan, nan, 0)
    all_values = np.array([value for value, _ in known])
    mean, low, high = float(all_values.mean()), nan, nan
    without = [np.array([value for value, pair in known if run not in pair]) for run in range(runs)]
    if interval and runs > 2 and all(map(len, without)):
        from scipy.stats import t

        left = np.array([part.mean() for part in without])
        error = np.sqrt((runs - 1) / runs * np.square(left - left.mean()).sum())
        reach = float(t.ppf(0.975, runs - 1) * error)
        low, high = mean - reach, mean + reach
    return Spread(mean, low, high, float(all_values.min()), float(all_values.max()), len(known))

"""A mean with its bootstrap draws, so that differences and means over layers have intervals as well."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clt_lightning.analysis.intervals import Interval, interval, mean_draws


@dataclass(frozen=True)
class Estimate:
    """A number, NaN where there is nothing to count.

    Attributes:
        value: on the sample itself.
        draws: `(draws,)` on its resamples.
    """

    value: float
    draws: np.ndarray

    @classmethod
    def of_columns(cls, columns: np.ndarray, draws: int, seed: int) -> list[Estimate]:
        """Means of `(n, columns)`: features or images by what was measured of each, on the same resamples."""
        if not len(columns):
            return [cls(math.nan, np.full(draws, math.nan))] * columns.shape[1]
        own, drawn = mean_draws(columns, draws, seed)
        return [cls(float(value), column) for value, column in zip(own, drawn.T)]

    @classmethod
    def mean(cls, parts: Sequence[Estimate]) -> Estimate:
        """The mean of some, of those that there are; draw by draw."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: so is the mean
            value = float(np.nanmean([part.value for part in parts]))
            return cls(value, np.nanmean([part.draws for part in parts], 0))

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.draws - other.draws)

    @property
    def interval(self) -> Interval:
        """With the 95 % interval."""
        return interval(self.value, self.draws)

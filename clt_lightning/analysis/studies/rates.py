"""Rates of use in several sets: intervals, tests with false-discovery control, entropy."""

from __future__ import annotations

import numpy as np
from scipy import stats

LEVEL = 0.95


def wilson(counts: np.ndarray, totals: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a share, which holds for 0 of n as well.

    Args:
        counts: how many of `totals`; of any shape.
        totals: of a shape that fits.
        level: of the interval.

    Returns:
        lower and upper ends; NaN where the total is 0.
    """
    z = stats.norm.ppf(0.5 + level / 2)
    n = np.where(np.asarray(totals) > 0, totals, np.nan).astype(np.float64)
    p = np.asarray(counts) / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    low, high = np.where(p == 0, 0.0, low), np.where(p == 1, 1.0, high)  # exact there, but for rounding
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values: the smallest false-discovery rate at which each test counts as one; NaNs stay and count as no test."""
    p = np.asarray(p, np.float64)
    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested])
    return q


def same_rate(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """p-values of "the rate is the same in all sets": Fisher's exact test of two sets, else Pearson's chi-square.

    Args:
        counts: `(..., sets)` images with the feature.
        totals: `(sets,)` images.

    Returns:
        `(...)`; NaN where the feature fired on no image, or on all of every set.
    """
    counts = np.asarray(counts, np.int64)
    totals = np.asarray(totals, np.int64)
    every = counts.sum(-1)
    out = np.full(counts.shape[:-1], np.nan)
    varies = (every > 0) & (every < totals.sum())
    if len(totals) == 2:
        # the two-sided test depends on the pair of counts alone, of which there are few
        pairs, place = np.unique(counts[varies], axis=0, return_inverse=True)
        values = [stats.fisher_exact([[a, totals[0] - a], [b, totals[1] - b]])[1] for a, b in pairs.tolist()]
        out[varies] = np.asarray(values)[place.reshape(-1)] if len(pairs) else 0.0
        return out
    rate = every[varies, None] / totals.sum()
    expected = rate * totals
    square = (counts[varies] - expected) ** 2 / (expected * (1 - rate))
    out[varies] = stats.chi2.sf(square.sum(-1), len(totals) - 1)
    return out


def use_entropy(rates: np.ndarray) -> np.ndarray:
    """Entropy of a feature's use over the sets, 0 (one set alone) to 1 (all alike); NaN where it has none.

    Args:
        rates: `(..., sets)` rates of use; sets count alike, however many images each has.
    """
    rates = np.asarray(rates, np.float64)
    total = rates.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = rates / total
        terms = np.where(share > 0, share * np.log(share), 0.0)
    return np.where(total[..., 0] > 0, -terms.sum(-1) / np.log(rates.shape[-1]), np.nan)


def explained_use(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """How far the set tells whether a feature is used: its information about that, over the entropy of use.

    Theil's uncertainty coefficient, `1 - H(used | set) / H(used)`, less what independent draws would have by chance: 0
    where the set tells nothing, 1 where it tells all. A feature that is on in 98 % of one set's images and in 60 % of
    the other's is told by where it is off; entropy of the two rates calls them nearly alike.

    Args:
        counts: `(..., sets)` images with the feature.
        totals: `(sets,)` images; sets count alike, however many each has.

    Returns:
        `(...)`; NaN where the feature fired on no image, or on all of every set, and all NaN where a set has no image.
    """
    totals = np.asarray(totals, np.float64)
    rates = np.asarray(counts) / np.maximum(totals, 1)
    every = _entropy(rates.mean(-1))
    # Miller and Madow: an entropy of two values from n images is too small by 1 / 2n
    n = np.maximum(totals, 1)
    chance = (1 - 1 / len(totals)) * (1 / (2 * n)).mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (every - _entropy(rates).mean(-1) - chance) / every
    return np.where((every > 0) & (totals > 0).all(), np.maximum(share, 0.0), np.nan)


def _entropy(p: np.ndarray) -> np.ndarray:
    """Of a feature that is on with this probability, in nats."""
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = [np.where(q > 0, -q * np.log(q), 0.0) for q in (p, 1 - p)]
    result: np.ndarray = terms[0] + terms[1]
    return result

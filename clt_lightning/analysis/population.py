"""Does the transcoder generalise? Held-out discrepancies against resamples of the training split.

Population predictive check in the sense of Moran, Blei and Ranganath (2019): a discrepancy on new data is compared with
its distribution over samples of the training population. The training population is known through m images only, so
every resample is drawn in two stages: m images from the m, then n from these, n as many as there are held out. The
spread is that of the difference between two samples, of m and of n images, and the check stays calibrated also where m
is not much larger than n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.metrics import unexplained

#: An image is an outlier where its error is above this quantile of the training images'
OUTLIER = 0.99
_CHUNK = 64


@dataclass
class PopulationOptions:
    """The pass over training images that gives the population check, term means and dataset rankings.

    Args:
        images: training images to read, evenly spaced over the split; 0 leaves out the check and everything that needs
            training means other than those in the transcoder.
        resamples: resamples of the training images.
    """

    images: int = 2000
    resamples: int = 1000

    def __post_init__(self) -> None:
        check_fields(self, "population")
        if self.images < 0 or self.resamples < 1:
            raise UserError(
                f"population.images must be >= 0 and population.resamples >= 1, got {self.images}, {self.resamples}"
            )


@dataclass(frozen=True)
class PopulationCheck:
    """One discrepancy, held out and on training resamples of the same size.

    Attributes:
        discrepancy: `fvu`, `l0`, `outliers` (share of images that are rebuilt worse than 99 % of the training images),
            `kl` or `accuracy_drop`.
        tokens: token set.
        first: first replaced layer; None where nothing is replaced (`fvu`, `l0`, `outliers`: means over layers).
        last: last replaced layer.
        held_out: value on the held-out split.
        train: value on the training images.
        resampled: `(resamples,)` sorted values.
    """

    discrepancy: str
    tokens: str
    first: int | None
    last: int | None
    held_out: float
    train: float
    resampled: np.ndarray = field(repr=False)

    @property
    def p_value(self) -> float:
        """One-sided: share of resamples at least as large as the held-out value (with one added to both counts)."""
        return self._share(self.resampled >= self.held_out)

    @property
    def p_two_sided(self) -> float:
        """Twice the smaller of the two one-sided ones, at most 1: what is better than in training differs, too."""
        low = self._share(self.resampled <= self.held_out)
        return float(np.minimum(1.0, 2 * np.minimum(self.p_value, low)))

    def _share(self, as_extreme: np.ndarray) -> float:
        if np.isnan(self.held_out) or np.isnan(self.resampled).any():
            return float("nan")
        return float((1 + as_extreme.sum()) / (1 + len(self.resampled)))

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        thinned = self.resampled[np.linspace(0, len(self.resampled) - 1, min(200, len(self.resampled))).astype(int)]
        found: dict[str, Any] = {
            "discrepancy": self.discrepancy,
            "tokens": self.tokens,
            "first": self.first,
            "last": self.last,
            "held_out": self.held_out,
            "train": self.train,
            "quantiles": {str(q): float(np.quantile(self.resampled, q)) for q in (0.025, 0.5, 0.975)},
            "p_value": self.p_value,
            "p_two_sided": self.p_two_sided,
            "resampled": thinned.tolist(),
        }
        return finite(found)  # type: ignore[no-any-return]


def resample_counts(m: int, n: int, resamples: int, seed: int) -> np.ndarray:
    """`(resamples, m)` float64: how often each of m training images is in a two-stage resample of n."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, m))
    for row in range(resamples):
        population = rng.integers(0, m, m)
        counts[row] = np.bincount(population[rng.integers(0, m, n)], minlength=m)
    return counts


@dataclass(frozen=True)
class TrainSums:
    """What is kept of each training image for the FVU of resamples.

    Attributes:
        error: `(m, L)` squared error summed over the image's tokens.
        squares: `(m, L)` squared distance of y to `origin`, summed.
        sums: `(m, L, d)` sum of y - origin.
        tokens: tokens of an image.
    """

    error: np.ndarray
    squares: np.ndarray
    sums: np.ndarray
    tokens: int

    def image_fvu(self, error: np.ndarray) -> np.ndarray:
        """`(n,)` mean over layers of images' errors `(n, L)` as shares of the training images' variance."""
        total = len(self.squares) * self.tokens
        variance = self.squares.sum(0) - np.square(self.sums.sum(0, dtype=np.float64)).sum(1) / total
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = error / self.tokens / (variance / total)
        return shares.mean(1)  # type: ignore[no-any-return]

    def fvu(self, counts: np.ndarray) -> np.ndarray:
        """Mean over layers of the FVU of resamples; `counts (resamples, m)` -> `(resamples,)`."""
        out = []
        for start in range(0, len(counts), _CHUNK):
            w = counts[start : start + _CHUNK]
            total = w.sum(1) * self.tokens
            shift = np.einsum("rm,mld->rld", w, self.sums, optimize=True)
            variance = w @ self.squares - np.square(shift).sum(2) / total[:, None]
            fvu = unexplained(torch.from_numpy(w @ self.error), torch.from_numpy(variance))
            out.append(fvu.numpy().mean(1))
        return np.concatenate(out)


def mean_check(
    discrepancy: str,
    tokens: str,
    window: tuple[int | None, int | None],
    held_out: np.ndarray,
    train: np.ndarray,
    counts: np.ndarray,
) -> PopulationCheck:
    """A check of a mean over images; NaN entries (no label) are left out of it, on both sides."""
    known = ~np.isnan(train)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = counts[:, known] @ train[known] / counts[:, known].sum(1)
    value, own = (float(np.nanmean(v)) if (~np.isnan(v)).any() else float("nan") for v in (held_out, train))
    return PopulationCheck(discrepancy, tokens, *window, value, own, np.sort(drawn))


def outlier_check(
    held_out: np.ndarray, train: np.ndarray, counts: np.ndarray, quantile: float = OUTLIER
) -> PopulationCheck:
    """A check of the share of images that are rebuilt worse than most training images.

    Args:
        held_out: `(n,)` errors of held-out images.
        train: `(m,)` of training images.
        counts: `(resamples, m)`.
        quantile: of the training images' errors, above which an image is an outlier.
    """
    limit = np.quantile(train, quantile)
    above = [(errors > limit).astype(np.float64) for errors in (held_out, train)]
    return mean_check("outliers", "all", (None, None), above[0], above[1], counts)

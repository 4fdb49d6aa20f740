"""Which images are steered: those whose statistics at [CLS] lie where the training images' lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clt_lightning.analysis.amplify.store import mean_of, parts
from clt_lightning.core.errors import UserError

GateBy = Literal["fvu", "domain"]
#: By what a gate may go, the statistics that it reads
STATISTICS: dict[str, tuple[str, ...]] = {"fvu": ("fvu",), "domain": ("fvu", "distance")}
_TINY = 1e-30


@dataclass(frozen=True)
class Gate:
    """What the training images' [CLS] look like; made from these alone, without labels.

    `fvu` is VS2's gate: an image is steered up to a quantile of the training images' FVU. A small FVU says that an
    image is easy to rebuild, which flat pictures from anywhere are. `domain` asks for two things: that [CLS] is as far
    from the training images' as they are from each other (Mahalanobis distance), and that it is rebuilt as well, and
    not better. Both are two-sided. Means and covariance come from one half of the training images and the limits from
    the other (split conformal prediction), each statistic at half the level (Bonferroni), so that new images of the
    training images' kind are steered with a probability of at least the quantile, whatever their distribution.

    Attributes:
        by: `fvu` or `domain`.
        means: `(targets, d_out)`.
        whitening: `(targets, d_out, d_out)`: deviations times it have covariance 1; None for `fvu`.
        scores: `(statistics, targets, images)` ascending, of the images that limits come from.
    """

    by: GateBy
    means: Tensor
    whitening: Tensor | None
    scores: Tensor

    @classmethod
    def fit(cls, by: GateBy, y: Tensor, error: Tensor) -> Gate:
        """From training images.

        Args:
            by: what the gate goes by.
            y: `(images, targets, d_out)` what is rebuilt.
            error: `(images, targets)` `|y - y_hat|^2`.

        Raises:
            UserError: too few images for two halves.
        """
        if by == "domain" and len(y) < 4:
            raise UserError(f"a gate by domain needs 4 training images or more, got {len(y)}")
        step = 2 if by == "domain" else 1
        fitted, kept = y[::step], slice(step - 1, None, step)
        means = mean_of(fitted).to(y)
        maps = None
        if by == "domain":
            maps = torch.stack([_whitening(fitted[:, n], means[n]).to(y) for n in range(y.shape[1])])
        bare = cls(by, means, maps, y.new_zeros(0))
        scores = torch.cat([bare.read(some, e, slice(None)) for some, e in parts(y[kept], error[kept])], 2)
        return cls(by, means, maps, scores.sort(dim=2).values)

    def read(self, y: Tensor, error: Tensor, rows: slice) -> Tensor:
        """`(statistics, targets, images)`: the statistics of some targets of other images.

        Args:
            y: `(images, targets, d_out)`.
            error: `(images, targets)`.
            rows: which targets.
        """
        means = self.means[rows].to(y)
        found = [_fvu(y, error, means)]
        if self.whitening is not None:
            found.append(_distance(y, means, self.whitening[rows].to(y)))
        return torch.stack(found)

    def limits(self, quantile: float) -> Tensor:
        """`(statistics, targets, 2)`: between which of them an image is steered; infinite where there is none.

        Raises:
            UserError: there are too few training images for this quantile: none could lie outside.
        """
        scores, n = self.scores.double(), self.scores.shape[2]
        low, high = torch.full(scores.shape[:2], -torch.inf), torch.full(scores.shape[:2], torch.inf)
        if self.by == "fvu":
            place = quantile * (n - 1)
            below = math.floor(place)
            high = torch.lerp(scores[:, :, below], scores[:, :, math.ceil(place)], place - below)
        elif quantile < 1:
            tail = (1 - quantile) / (2 * len(scores))
            k = int((n + 1) * tail + 1e-9)
            if k == 0:
                least = 2 * math.ceil(1 / tail - 1 - 1e-9)
                raise UserError(
                    f"a gate by domain at the quantile {quantile:g} needs {least} training images or more: with "
                    f"{2 * n} no image could lie outside"
                )
            low, high = scores[:, :, k - 1], scores[:, :, n - k]
        return torch.stack([low.to(self.scores), high.to(self.scores)], 2)


def _fvu(y: Tensor, error: Tensor, means: Tensor) -> Tensor:
    """`(targets, images)`: errors over deviations from the means."""
    return (error / (y - means).square().sum(2).clamp(min=_TINY)).T


def _distance(y: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    """`(targets, images)`: squared Mahalanobis distances over the width."""
    deviations = (y - means).transpose(0, 1)
    return torch.bmm(deviations, whitening).square().mean(2)


def _whitening(y: Tensor, mean: Tensor) -> Tensor:
    """`(d, d)` fp64, of the covariance of `(images, d)` about a mean, shrunk to a multiple of 1.

    The shrinkage is the oracle-approximating one (Chen et al. 2010), which needs no choice: strong where there are few
    images for the width.
    """
    n, d = y.shape
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for (some,) in parts(y):
        deviations = (some - mean).double()
        covariance.addmm_(deviations.T, deviations)
    covariance /= n
    trace, squared = covariance.trace(), covariance.square().sum()
    spread = (n + 1 - 2 / d) * (squared - trace.square() / d)
    share = float((((1 - 2 / d) * squared + trace.square()) / spread.clamp(min=_TINY)).clamp(max=1))
    values, vectors = torch.linalg.eigh(covariance)
    shrunk = (1 - share) * values + share * trace / d
    maps: Tensor = vectors / shrunk.clamp(min=_TINY).sqrt()
    return maps

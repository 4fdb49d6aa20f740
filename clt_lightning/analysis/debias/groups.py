"""Groups of images, a class with a value of an attribute, and what accuracy is over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.intervals import Interval, weighted_interval
from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class Groups:
    """How groups are numbered: `kind * attributes + attribute`, a kind being one class or several.

    Attributes:
        n: how many there are.
        attributes: values of the attribute.
        names: of the groups.
    """

    n: int
    attributes: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, labels: Tensor, groups: Tensor, names: Sequence[str] | None) -> Groups:
        """From the labels and groups of training images.

        The number of values is the smallest that divides the number of groups so that every class is of one kind.

        Raises:
            UserError: fewer than two classes, one group a class, or a group without images.
        """
        n = max(int(groups.max()) + 1, len(names or ()))
        told = tuple(names) if names else tuple(f"group {i}" for i in range(n))
        if len(labels.unique()) < 2:
            raise UserError("the training images are of one class: there is nothing that a cue could go with")
        attributes = next(
            (
                a
                for a in range(1, n + 1)
                if n % a == 0 and all(len((groups[labels == c] // a).unique()) == 1 for c in labels.unique())
            ),
            n,
        )
        if attributes == 1 or attributes == n:
            raise UserError(
                "every class has one group alone, so nothing tells the cue from the class"
                if attributes == 1
                else f"the {n} groups are not numbered class * attributes + attribute: a class has groups of several"
            )
        found = cls(n, attributes, told)
        found.check(groups, "train")
        return found

    def check(self, groups: Tensor, split: str) -> None:
        """Whether a split has images of every group.

        Raises:
            UserError: it has not.
        """
        counts = torch.bincount(groups, minlength=self.n)
        empty = [self.names[i] for i in range(self.n) if counts[i] == 0]
        if empty or len(counts) > self.n:
            raise UserError(
                f"{split} has no image of group {empty[0]!r}: accuracy by group needs some of each ("
                f"{', '.join(f'{name}: {int(c)}' for name, c in zip(self.names, counts))})"
                if empty
                else f"{split} has group {len(counts) - 1}, train has {self.n} groups"
            )

    def attribute(self, groups: Tensor) -> Tensor:
        """The attribute's value of each image, by its group."""
        return groups % self.attributes

    def kind(self, groups: Tensor) -> Tensor:
        """The kind of each image, by its group."""
        return groups // self.attributes

    def at_most(self, groups: Tensor, most: int, seed: int) -> Tensor:
        """Ascending indices of at most so many images of each group, drawn."""
        rng = np.random.default_rng(seed)
        places = [(groups == i).nonzero().flatten().numpy() for i in range(self.n)]
        return torch.from_numpy(np.sort(np.concatenate([rng.permutation(place)[:most] for place in places])))

    def balanced(self, groups: Tensor, seed: int) -> Tensor:
        """Ascending indices of equally many images of each group, drawn."""
        return self.at_most(groups, int(torch.bincount(groups, minlength=self.n).min()), seed)


@dataclass(frozen=True)
class Scores:
    """Accuracy over groups, with 95 % intervals over images, and what changed against the untouched model.

    Attributes:
        groups: by group.
        worst: of the worst group; `balanced`: mean over groups; `overall`: over images.
        change: of worst, balanced and overall, against the untouched model on the same resamples.
        to_right: images that the edit makes right; `to_wrong`: those that it makes wrong. Means over draws.
    """

    groups: tuple[Interval, ...]
    worst: Interval
    balanced: Interval
    overall: Interval
    change: dict[str, Interval]
    to_right: float
    to_wrong: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "groups": [interval.to_json() for interval in self.groups],
            **{name: getattr(self, name).to_json() for name in ("worst", "balanced", "overall")},
            "change": {name: interval.to_json() for name, interval in self.change.items()},
            "to_right": self.to_right,
            "to_wrong": self.to_wrong,
        }


def scores(right: np.ndarray, before: np.ndarray, groups: Tensor, n_groups: int, draws: int, seed: int) -> Scores:
    """Accuracy by group.

    Args:
        right: `(n,)` or `(draws of an arm, n)`: whether each image is right with the edit.
        before: `(n,)` without it.
        groups: `(n,)`.
        n_groups: how many.
        draws: resamples of images.
        seed: of these.
    """
    rows = np.atleast_2d(right).astype(np.float64)
    before = before.astype(np.float64)
    member = np.eye(n_groups)[groups.numpy()]  # (n, groups)

    def of(weights: np.ndarray, hits: np.ndarray) -> np.ndarray:
        count = weights @ member
        groups_ = np.where(count > 0, weights @ (member * hits[:, None]) / np.maximum(count, 1e-30), np.nan)
        overall = (weights @ hits) / weights.sum(1)
        summary = np.stack([np.nanmin(groups_, 1), np.nanmean(groups_, 1), overall], 1)
        return np.concatenate([groups_, summary], 1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        w = weights.astype(np.float64)
        # the worst group is each draw's own
        now = np.mean([of(w, row) for row in rows], 0)
        return np.concatenate([now, now[:, n_groups:] - of(w, before)[:, n_groups:]], 1)

    found = weighted_interval(len(before), statistic, draws, seed)
    G = n_groups
    return Scores(
        tuple(found[:G]),
        found[G],
        found[G + 1],
        found[G + 2],
        dict(zip(("worst", "balanced", "overall"), found[G + 3 :])),
        float((rows * (1 - before)).sum(1).mean()),
        float(((1 - rows) * before).sum(1).mean()),
    )

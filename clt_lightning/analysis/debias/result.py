"""What a study of debiasing has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clt_lightning.analysis.debias.groups import Scores
from clt_lightning.analysis.intervals import Interval


@dataclass(frozen=True)
class ArmResult:
    """One arm.

    Attributes:
        name: in words.
        kind: `none`, one of `WAYS`, `random`, or a control's: `heads`, `projection`, `erasure`, `difference`,
            `retrained`, `unbiased`.
        run: which run's features; empty for arms without.
        scores: on all test images.
        edit: one of `EDITS`; empty for arms without features.
        chosen: features or heads of the edit.
        sizes: by size tried, the measure on the choice images that it was chosen by.
        auc: of the way's score against the planted cue, where that is known.
        collateral: by data set, accuracy less that without the edit.
    """

    name: str
    kind: str
    run: str
    scores: Scores
    edit: str = ""
    chosen: tuple[tuple[int, int], ...] = ()
    sizes: dict[int, float] = field(default_factory=dict)
    auc: float | None = None
    collateral: dict[str, Interval] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "edit": self.edit,
            "run": self.run,
            "chosen": [list(place) for place in self.chosen],
            "sizes": {str(n): value for n, value in self.sizes.items()},
            "auc": self.auc,
            "collateral": {name: found.to_json() for name, found in self.collateral.items()},
            **self.scores.to_json(),
        }


@dataclass(frozen=True)
class DebiasResult:
    """All arms on one test split.

    Attributes:
        arms: the first one is the untouched model.
        groups: their names; counts: test images of each.
        head: the predictor, in words.
        collateral: accuracy of the untouched model by data set.
        notes: what was left out, and why.
    """

    arms: list[ArmResult]
    groups: tuple[str, ...]
    counts: tuple[int, ...]
    head: str
    collateral: dict[str, float]
    notes: list[str]

    def arm(self, kind: str, run: str | None = None, edit: str | None = None) -> ArmResult:
        """The first arm of a kind (of a run, with an edit).

        Raises:
            KeyError: there is none.
        """
        for arm in self.arms:
            if arm.kind == kind and (run is None or arm.run == run) and (edit is None or arm.edit == edit):
                return arm
        raise KeyError(kind)

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "groups": list(self.groups),
            "counts": list(self.counts),
            "head": self.head,
            "collateral": self.collateral,
            "notes": self.notes,
            "arms": [arm.to_json() for arm in self.arms],
        }

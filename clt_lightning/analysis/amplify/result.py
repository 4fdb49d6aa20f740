"""What a study of amplification found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clt_lightning.analysis import notebook
from clt_lightning.analysis.amplify.arms import WORDS, Choice
from clt_lightning.analysis.intervals import Interval, mean_intervals


@dataclass(frozen=True)
class AmplifyArm:
    """One arm, measured.

    Attributes:
        name: of `WORDS`.
        choice: what the validation images chose (or the one that was given).
        tried: candidates and their accuracy on the validation images, in the order in which they were tried.
        accuracy: top-1 on the test images, with its 95 % interval over images.
        difference: to the untouched model on the same images, paired.
        steered: share of the test images that the arm moves; None for arms that move none.
        steered_layers: the same of each layer's terms, for the gated arm.
        won: images that it alone gets right; `lost`: that the untouched model alone gets right.
        changed: images of another predicted class than the untouched model's.
        steered_accuracy: of the images that are steered; `steered_difference` to the untouched model on them.
    """

    name: str
    choice: Choice
    tried: list[tuple[Choice, float]]
    accuracy: Interval
    difference: Interval
    steered: float | None
    steered_layers: list[float] | None
    won: int
    lost: int
    changed: int
    steered_accuracy: float | None = None
    steered_difference: float | None = None

    @property
    def val(self) -> float:
        """Accuracy on the validation images with the choice."""
        return next(value for choice, value in self.tried if choice == self.choice)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = ("name", "steered", "steered_layers", "won", "lost", "changed", "steered_accuracy")
        return {name: getattr(self, name) for name in plain} | {
            "steered_difference": self.steered_difference,
            "words": WORDS[self.name],
            "choice": self.choice.to_json(),
            "tried": [{**choice.to_json(), "val": value} for choice, value in self.tried],
            "val": self.val,
            "accuracy": self.accuracy.to_json(),
            "difference": self.difference.to_json(),
        }


@dataclass(frozen=True)
class AmplifyResult:
    """All arms of one transcoder and split.

    Attributes:
        arms: `none` first.
        left_out: arms that could not be run, and why.
        images: labelled images by split; of `train` all.
        layers: the blocks whose features are amplified.
        places: site and block at which [CLS] is moved.
        targets: the transcoder's layers that the gate looks at.
        gate_by: what the gate looks at, see `Gate`.
        limits: by quantile and statistic, of each target between which values an image is steered; None: no limit.
        fvu: by split the median FVU of `targets`.
        outside: by name of other images: how many, and the share that the chosen gate would steer.
        neighbours: how many were looked at.
        index: what the space of neighbours is.
        keys: of the test images; `labels` (n,) and `predicted` by arm (n,).
        classnames: names of the classes.
        seed: of random directions and resamples.
    """

    arms: list[AmplifyArm]
    left_out: dict[str, str]
    images: dict[str, int]
    layers: list[int]
    places: list[tuple[str, int]]
    targets: list[int]
    gate_by: str
    limits: dict[float, dict[str, list[list[float | None]]]]
    fvu: dict[str, list[float]]
    outside: dict[str, dict[str, float]]
    neighbours: int
    index: str
    keys: list[str] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    predicted: dict[str, np.ndarray] = field(repr=False)
    classnames: list[str] = field(repr=False)
    seed: int = 0

    def __getitem__(self, name: str) -> AmplifyArm:
        return next(arm for arm in self.arms if arm.name == name)

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "images": self.images,
            "layers": self.layers,
            "places": [{"site": site, "block": block} for site, block in self.places],
            "arms": [arm.to_json() for arm in self.arms],
            "left_out": self.left_out,
            "gate": {
                "targets": self.targets,
                "by": self.gate_by,
                "limits": {f"{q:g}": values for q, values in self.limits.items()},
                "median_fvu": self.fvu,
                "outside": self.outside,
            },
            "neighbours": {"k": self.neighbours, "index": self.index},
            "seed": self.seed,
            "classnames": self.classnames,
            "keys": self.keys,
            "labels": self.labels.tolist(),
            "predicted": {name: values.tolist() for name, values in self.predicted.items()},
        }

    def _repr_html_(self) -> str:
        rows = [
            [
                WORDS[arm.name],
                f"{100 * arm.accuracy.value:.2f}",
                "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * v for v in _ends(arm.difference))),
                "" if arm.steered is None else f"{100 * arm.steered:.1f}",
            ]
            for arm in self.arms
        ]
        title = f"{self.images['test']} images; strengths chosen on {self.images['val']} validation images"
        return notebook.table(["arm", "top-1 %", "points to untouched", "steered %"], rows, title)


def paired(right: np.ndarray, base: np.ndarray, draws: int, seed: int) -> tuple[list[Interval], list[Interval]]:
    """Accuracies of arms, and their differences to the untouched model, on the same resamples of images.

    Args:
        right: `(images, arms)` bool.
        base: `(images,)` bool, of the untouched model.
        draws: resamples.
        seed: of the resamples.
    """
    columns = np.concatenate([right.astype(np.float32), right.astype(np.float32) - base[:, None]], 1)
    found = mean_intervals(columns, draws, seed)
    return found[: right.shape[1]], found[right.shape[1] :]


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high

"""What `bench` has measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from clt_lightning.analysis.bench.estimate import Estimate


@dataclass(frozen=True)
class Row:
    """One number beside its control.

    Attributes:
        value: the number; `control`: the control's.
        n: features, or images, that it is a mean of.
    """

    value: Estimate
    control: Estimate
    n: int

    @classmethod
    def of(cls, columns: np.ndarray, draws: int, seed: int) -> Row:
        """From what was measured of each feature or image, `(n, 2)`: number and control."""
        value, control = Estimate.of_columns(columns, draws, seed)
        return cls(value, control, len(columns))

    @classmethod
    def mean(cls, rows: Sequence[Row]) -> Row:
        """The mean over layers, of those in which there was something to count; n of all of them together."""
        value, control = (Estimate.mean([getattr(row, name) for row in rows]) for name in ("value", "control"))
        return cls(value, control, sum(row.n for row in rows))

    @property
    def difference(self) -> Estimate:
        """Number minus control."""
        return self.value - self.control

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        named = {"value": self.value, "control": self.control, "difference": self.difference}
        return {"n": self.n} | {name: part.interval.to_json() for name, part in named.items()}


@dataclass(frozen=True)
class Measure:
    """One measure of every layer.

    Attributes:
        name: its key in JSON.
        title: in words.
        of: what the number is of; `control`: what the control is.
        unit: `features` or `images`: what intervals resample.
        trained: a row per layer; `untrained`: the same of the untrained transcoder.
        columns: of k-sparse probes, the features that each layer's probe reads.
    """

    name: str
    title: str
    of: str
    control: str
    unit: str
    trained: list[Row]
    untrained: list[Row]
    columns: list[list[int]] | None = None

    def mean(self, rows: Sequence[Row]) -> Row:
        """The mean over layers of `trained` or `untrained`; images are the same in all layers, features are not."""
        mean = Row.mean(rows)
        return mean if self.unit == "features" else replace(mean, n=max(row.n for row in rows))

    def over_untrained(self, layer: int | None) -> Estimate:
        """The trained number minus the untrained one: of a layer, or in the mean (None)."""
        if layer is None:
            return self.mean(self.trained).value - self.mean(self.untrained).value
        return self.trained[layer].value - self.untrained[layer].value

    def to_json(self) -> dict[str, Any]:
        """Plain values."""

        def entry(layer: int | None, trained: Row, untrained: Row) -> dict[str, Any]:
            rows = {"trained": trained.to_json(), "untrained": untrained.to_json()}
            return rows | {"over_untrained": self.over_untrained(layer).interval.to_json()}

        layers = [entry(i, *rows) for i, rows in enumerate(zip(self.trained, self.untrained))]
        for row, columns in zip(layers, self.columns or ()):
            row["columns"] = columns
        return {
            **{name: getattr(self, name) for name in ("title", "of", "control", "unit")},
            "layers": layers,
            "mean": entry(None, self.mean(self.trained), self.mean(self.untrained)),
        }


@dataclass(frozen=True)
class BenchResult:
    """All measures of a transcoder.

    Attributes:
        layers: names of the layers: the backbone's blocks, or the site after them.
        measures: by name.
        index: whose embedding says how alike images are.
        images: of each split that were read.
        l0: by transcoder (`trained`, `untrained`), each layer's L0 on the test images.
        notes: what was left out, and why.
        seed: of the untrained transcoder and of all draws.
    """

    layers: list[str]
    measures: dict[str, Measure]
    index: str
    images: dict[str, int]
    l0: dict[str, list[float]]
    notes: list[str] = field(default_factory=list)
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values (docs/results-schema.md)."""
        plain = ("layers", "index", "images", "l0", "notes", "seed")
        measures = {name: measure.to_json() for name, measure in self.measures.items()}
        return {name: getattr(self, name) for name in plain} | {"measures": measures}

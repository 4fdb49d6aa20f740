"""Insertion and deletion curves: what is left of a class when only a circuit is kept, or when it is taken away.

Every arm chooses nodes of its own; all are masked the same way (`masked.py`). With m the measure, `m(C)` what it is
with the nodes C kept, curves are normalised as `(m(C) - m(none)) / (m(all) - m(none))`: insertion keeps the circuit
(faithfulness), deletion keeps everything else (completeness: the lower, the more of it the circuit holds).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.selection import FRACTIONS, counts_of
from clt_lightning.analysis.intervals import Interval, weighted_interval
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress

#: What is read of each forward: the class's logit, the same less the mean of all classes', its probability, whether it
#: is the most probable one
MEASURES = ("logit", "adjusted_logit", "probability", "accuracy")
MODES = ("insertion", "deletion")
AXES = ("linear", "log")


@dataclass(frozen=True)
class Masks:
    """What an arm keeps of one image.

    Attributes:
        keep: `(fractions, layers, units)` bool: the circuit at each fraction.
        nodes: how many of a layer's units were chosen from.
        embeddings: runs masks `(variants, layers, units)`, giving unit embeddings `(variants, embed_dim)`.
        active: `(layers, units)` bool: units that differ from their baseline in this image.
        edges: `(fractions,)` edges between kept nodes; None for arms without edges.
    """

    keep: Tensor
    nodes: int
    embeddings: Callable[[Tensor], Tensor]
    active: Tensor
    edges: Tensor | None = None


Arms = Callable[[Tensor, int], Mapping[str, Masks]]
"""`arms(image, label)`: of one image `(3, size, size)` and its class, what each arm keeps."""


@dataclass(frozen=True)
class ArmCurve:
    """The curves of one arm.

    Attributes:
        fractions: `(fractions,)` the true shares of a layer's nodes.
        table: by mode, `(images, fractions, measures)`.
        active: `(images, fractions)` nodes kept that differ from their baseline.
        edges: `(images, fractions)` edges between kept nodes, NaN where an arm has none.
    """

    fractions: np.ndarray
    table: dict[str, np.ndarray] = field(repr=False)
    active: np.ndarray = field(repr=False)
    edges: np.ndarray = field(repr=False)

    def gains(self, mode: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """`(images, fractions)` of m(C) - m(none), and `(images,)` of m(all) - m(none)."""
        values: np.ndarray = self.table[mode][:, :, MEASURES.index(measure)]
        none, everything = (0, -1) if mode == "insertion" else (-1, 0)
        return values - values[:, [none]], values[:, everything] - values[:, none]

    def areas(self, mode: str, measure: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """`(images,)` areas under m(C) - m(none), the axis being 1 long, and the gains of everything."""
        gains, whole = self.gains(mode, measure)
        return area(self.fractions, gains, axis), whole


@dataclass(frozen=True)
class Curves:
    """Curves of several arms on the same images.

    Attributes:
        arms: by name.
        keys: of the images.
        n_nodes: nodes of a layer, by arm.
        draws: resamples of images behind the intervals.
        seed: of these.
        about: plain values that say how they were made.
    """

    arms: dict[str, ArmCurve]
    keys: list[str]
    n_nodes: dict[str, int]
    draws: int
    seed: int
    about: dict[str, Any] = field(default_factory=dict)

    def auc(self, measure: str = "adjusted_logit", axis: str = "log") -> dict[str, dict[str, Interval]]:
        """By mode and arm, the area under the normalised curve, with its 95 % interval over images.

        Numerator and denominator are summed over images first: a ratio of each image's own would hang on the few of
        them whose denominator is near 0.
        """
        return {
            mode: dict(
                zip(
                    self.arms,
                    _ratios([arm.areas(mode, measure, axis) for arm in self.arms.values()], self.draws, self.seed),
                )
            )
            for mode in MODES
        }

    def ahead(
        self, arm: str, of: str, mode: str = "insertion", measure: str = "adjusted_logit", axis: str = "log"
    ) -> Interval:
        """By how much one arm's area is larger than another's, on the same resamples."""
        a, b = (self.arms[name].areas(mode, measure, axis) for name in (arm, of))

        def difference(weights: np.ndarray) -> np.ndarray:
            w = weights.astype(np.float64)
            ahead: np.ndarray = _over(w @ a[0], w @ a[1]) - _over(w @ b[0], w @ b[1])
            return ahead[:, None]

        return weighted_interval(len(self.keys), difference, self.draws, self.seed)[0]

    def normalised(self, mode: str, measure: str) -> dict[str, list[Interval]]:
        """By arm, the normalised curve with its intervals."""
        found = {}
        for name, arm in self.arms.items():
            gains, whole = arm.gains(mode, measure)
            found[name] = _ratios([(column, whole) for column in gains.T], self.draws, self.seed)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values: for each arm its curves and areas; means over images, normalised curves with intervals."""
        areas = {(measure, axis): self.auc(measure, axis) for measure in MEASURES for axis in AXES}
        curves = {(mode, measure): self.normalised(mode, measure) for mode in MODES for measure in MEASURES}
        arms = {}
        for name, arm in self.arms.items():
            modes = {}
            for mode in MODES:
                modes[mode] = {
                    measure: {
                        "mean": arm.table[mode][:, :, i].mean(0).tolist(),
                        "normalised": [point.to_json() for point in curves[mode, measure][name]],
                        "auc": {axis: areas[measure, axis][mode][name].to_json() for axis in AXES},
                    }
                    for i, measure in enumerate(MEASURES)
                }
            has_edges = not np.isnan(arm.edges).all()
            arms[name] = {
                "fractions": arm.fractions.tolist(),
                "nodes": self.n_nodes[name],
                "active": arm.active.mean(0).tolist(),
                "edges": arm.edges.mean(0).tolist() if has_edges else None,
                **modes,
            }
        return {"about": self.about, "images": len(self.keys), "keys": self.keys, "arms": arms}


@torch.no_grad()
def curves(
    arms: Arms,
    images: Iterable[tuple[str, Tensor, int]],
    head: Tensor,
    scale: float,
    n: int | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> Curves:
    """Measure all arms on images.

    Args:
        arms: makes the masks of each image; all arms at the same `fractions`.
        images: key, image `(3, size, size)` and class of each.
        head: `(embed_dim, classes)` unit columns.
        scale: from cosines to logits.
        n: how many images there are, for the progress line.
        fractions: of a layer's nodes, from 0 to 1.
        draws: resamples of images.
        seed: of these.
        progress: say how far it is.
        about: plain values to keep.

    Raises:
        UserError: no images.
    """
    keys: list[str] = []
    rows: dict[str, dict[str, list[np.ndarray]]] = {}
    sizes: dict[str, int] = {}
    with Progress("circuits", n, "images", show=progress) as bar:
        for key, image, label in images:
            keys.append(key)
            for name, masks in arms(image, label).items():
                mine = rows.setdefault(name, {part: [] for part in (*MODES, "active", "edges")})
                sizes[name] = masks.nodes
                both = torch.cat([masks.keep, ~masks.keep])
                found = measure(masks.embeddings(both), head, scale, label)
                for mode, part in zip(MODES, found.split(len(masks.keep))):
                    mine[mode].append(part.numpy())
                mine["active"].append((masks.keep & masks.active).sum((1, 2)).numpy())
                nothing = torch.full((len(masks.keep),), float("nan"))
                mine["edges"].append((nothing if masks.edges is None else masks.edges).numpy())
            bar.update()
    if not keys:
        raise UserError("curves need at least one image")
    made = {}
    for name, parts in rows.items():
        table = {mode: np.stack(parts[mode]) for mode in MODES}
        true = np.array(counts_of(fractions, sizes[name])) / sizes[name]
        made[name] = ArmCurve(true, table, np.stack(parts["active"]), np.stack(parts["edges"]))
    return Curves(made, keys, sizes, draws, seed, about or {})


def measure(embeddings: Tensor, head: Tensor, scale: float, label: int) -> Tensor:
    """`(variants, measures)` float64 of a class."""
    logits = scale * (embeddings.double() @ head.double().to(embeddings.device))
    mine = logits[:, label]
    right = (logits.argmax(1) == label).double()
    return torch.stack([mine, mine - logits.mean(1), logits.softmax(1)[:, label], right], 1).cpu()


def area(fractions: np.ndarray, values: np.ndarray, axis: str) -> np.ndarray:
    """`(images,)` areas under `(images, fractions)` by trapezes, over an axis scaled to length 1.

    Args:
        fractions: rising from 0 to 1; several of a small layer may be the same.
        values: at each.
        axis: `linear`, or `log` (from the smallest fraction above 0 to 1).

    Raises:
        UserError: another axis.
    """
    if axis not in AXES:
        raise UserError(f"an axis is one of {', '.join(AXES)}, got {axis!r}")
    x = fractions
    if axis == "log":
        some = fractions > 0
        x, values = np.log10(fractions[some]), values[:, some]
        x = x - x[0]
    if x[-1] == 0:
        return values[:, -1]
    found: np.ndarray = ((values[:, 1:] + values[:, :-1]) / 2 * np.diff(x)).sum(1) / x[-1]
    return found


def _ratios(parts: list[tuple[np.ndarray, np.ndarray]], draws: int, seed: int) -> list[Interval]:
    above, below = (np.stack([part[i] for part in parts], 1).astype(np.float64) for i in range(2))

    def statistic(weights: np.ndarray) -> np.ndarray:
        wide = weights.astype(np.float64)
        return _over(wide @ above, wide @ below)

    return weighted_interval(len(above), statistic, draws, seed)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A ratio; NaN over 0."""
    return np.where(below == 0, np.nan, above / np.where(below == 0, 1.0, below))

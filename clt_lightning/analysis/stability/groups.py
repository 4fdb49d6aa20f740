"""Which features are found again: by how often they fire, and by how many layers they write to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clt_lightning.analysis.intervals import NOTHING, Interval, share_interval
from clt_lightning.analysis.matching import STATES, Side
from clt_lightning.analysis.probes.fit import spearman
from clt_lightning.core.files import finite
from clt_lightning.transcoder import CrossLayerTranscoder

#: A feature writes to a layer where its norm there is more than this share of its largest
WRITES = 0.1
_DRAWS = 1000


@dataclass(frozen=True)
class Group:
    """Some living features of one of two transcoders.

    Attributes:
        features: how many.
        kept: of these, how many have a partner of their own in the other.
        share: their share, with its 95 % interval over features.
        decoder: mean cosine with the nearest feature by `both`, of what they write; NaN without features.
        encoder: of what they read.
        both: the smaller of the two.
    """

    features: int
    kept: int
    share: Interval
    decoder: float
    encoder: float
    both: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in ("features", "kept", "decoder", "encoder", "both")}
        return finite(plain) | {"share": self.share.to_json()}  # type: ignore[no-any-return]


def group(sides: Sequence[Side], chosen: np.ndarray, seed: int = 0) -> Group:
    """The living ones among some features `(L, F)` bool."""
    state = np.stack([side.state for side in sides])
    there = chosen & (state != STATES.index("dead"))
    n, kept = int(there.sum()), int((there & (state == STATES.index("kept"))).sum())
    means = [
        float(np.stack([getattr(side, name) for side in sides])[there].mean(dtype=np.float64)) if n else np.nan
        for name in ("decoder", "encoder", "both")
    ]
    return Group(n, kept, share_interval(kept, n, _DRAWS, seed), *means)


@dataclass(frozen=True)
class ByRate:
    """Stability by firing rate.

    Attributes:
        bins: `(low, high, features)`, decades of the share of tokens on which a feature is active, rare ones first.
        correlation: rank correlation of the rate with the cosine `both`, over living features.
    """

    bins: list[tuple[float, float, Group]]
    correlation: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{"low": low, "high": high} | found.to_json() for low, high, found in self.bins]
        return {"bins": rows, "correlation": finite(self.correlation)}


def decades(rates: np.ndarray) -> np.ndarray:
    """The power of ten below each rate, as int; of a rate of 0 that of 1."""
    fired = rates > 0
    return np.floor(np.log10(np.where(fired, rates, 1.0))).astype(int)


def by_rate(sides: Sequence[Side], rates: np.ndarray, seed: int = 0) -> ByRate:
    """By the share of tokens on which they fire.

    Args:
        sides: one per layer.
        rates: `(L, F)`; features that are 0 there count nowhere.
        seed: of the intervals.
    """
    rates = rates.astype(np.float64)
    fired, decade = rates > 0, decades(rates)
    bins = [
        (10.0**d, 10.0 ** (d + 1), group(sides, fired & (decade == d), seed))
        for d in sorted(set(decade[fired].tolist()))
    ]
    state, both = np.stack([side.state for side in sides]), np.stack([side.both for side in sides])
    there = fired & (state != STATES.index("dead"))
    found = [float("nan")]
    if there.sum() > 1:
        found = spearman(torch.from_numpy(both[there])[:, None], torch.from_numpy(rates[there])).tolist()
    return ByRate([entry for entry in bins if entry[2].features], found[0])


@torch.no_grad()
def targets_written(clt: CrossLayerTranscoder, least: float = WRITES) -> np.ndarray:
    """`(L, F)` int: to how many layers each feature writes; 0 for one that writes nowhere.

    A layer counts where the feature's norm there (in the backbone's units) is more than `least` of its largest, so that
    exact zeros and those that are left by training without a prior are treated alike.
    """
    out = []
    for source in range(clt.n_layers):
        n = clt.n_targets(source)
        scale = clt.y_scale[source : source + n].float()
        norms = clt.W_dec[source].float().norm(dim=-1) * scale
        largest = norms.max(1, keepdim=True).values
        out.append(((norms > least * largest) & (largest > 0)).sum(1).cpu().numpy())
    return np.stack(out)


@dataclass(frozen=True)
class Anchors:
    """Features that have something of their own, against the others: a single layer, or coordinates (`coordinates.py`).

    Attributes:
        anchors: they: features with one target, of those that could have several; or owners of coordinates.
        others: the rest: with two or more targets; or without a coordinate of their own.
        difference: share kept of the anchors minus that of the others, with its 95 % interval over features.
        at_equal_rates: the same within each decade of the firing rate, averaged by the number of anchors there: what is
            left where anchors only fire more often; NaN without rates, or where no decade has both.
    """

    anchors: Group
    others: Group
    difference: Interval
    at_equal_rates: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name).to_json() for name in ("anchors", "others", "difference", "at_equal_rates")}


def anchors_against_others(
    clt: CrossLayerTranscoder,
    sides: Sequence[Side],
    rates: np.ndarray | None = None,
    least: float = WRITES,
    seed: int = 0,
) -> Anchors | None:
    """Whether features with one target are found again more often; None where no layer's features can write to two.

    Args:
        clt: the transcoder whose features they are.
        sides: one per layer.
        rates: `(L, F)` firing rates.
        least: as `targets_written` takes it.
        seed: of the intervals.
    """
    several = np.array([clt.n_targets(layer) > 1 for layer in range(clt.n_layers)])
    if not several.any():
        return None
    written = targets_written(clt, least)
    there = several[:, None] & (written > 0)
    return against(sides, there & (written == 1), there & (written > 1), rates, seed)


def against(
    sides: Sequence[Side], first: np.ndarray, second: np.ndarray, rates: np.ndarray | None = None, seed: int = 0
) -> Anchors:
    """Whether some features are found again more often than others; of both the living ones.

    Args:
        sides: one per layer.
        first: `(L, F)` bool.
        second: the same.
        rates: `(L, F)` firing rates.
        seed: of the intervals.
    """
    state = np.stack([side.state for side in sides])
    alive, kept = state != STATES.index("dead"), state == STATES.index("kept")
    anchor, other = first & alive, second & alive
    plain = _difference(kept, anchor, other, np.zeros(state.shape, int), seed)
    equal = NOTHING if rates is None else _difference(kept, anchor, other, decades(rates.astype(np.float64)), seed)
    return Anchors(group(sides, anchor, seed), group(sides, other, seed), plain, equal)


def _difference(kept: np.ndarray, first: np.ndarray, second: np.ndarray, cells: np.ndarray, seed: int) -> Interval:
    """Share kept of the first minus that of the second within each cell, averaged by the first's numbers."""
    names = [c for c in sorted(set(cells[first].tolist())) if (second & (cells == c)).any()]
    weight = np.array([(first & (cells == c)).sum() for c in names], float)
    if not len(names):
        return NOTHING
    rng = np.random.default_rng(seed)
    value, draws = 0.0, np.zeros(_DRAWS)
    for name, part in zip(names, weight / weight.sum()):
        for sign, group_ in ((1, first), (-1, second)):
            here = group_ & (cells == name)
            n, k = int(here.sum()), int((here & kept).sum())
            value += sign * part * k / n
            draws += sign * part * rng.beta(k + 0.5, n - k + 0.5, _DRAWS)  # Jeffreys: 0 of 3 is not surely 0
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(value, float(low), float(high))

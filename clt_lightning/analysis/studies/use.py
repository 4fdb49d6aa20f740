"""What was found: which features the sets share, and which are one set's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clt_lightning.analysis.studies.rates import (
    LEVEL,
    benjamini_hochberg,
    explained_use,
    same_rate,
    use_entropy,
    wilson,
)

#: What a feature is to the sets: it fired in none; it is used alike; it is used unevenly; one set has nearly all of it
KINDS = ("dead", "shared", "uneven", "specific")
#: Share of a feature's use, summed over sets of equal weight, from which it counts as one set's own
OWN = 0.9


@dataclass(frozen=True)
class StudyUse:
    """How features are used in each of several sets.

    Attributes:
        names: of the sets.
        images: `(sets,)`.
        counts: `(L, F, sets)` images on which a feature is active.
        l0: `(sets, L)` mean active features of a token.
        fvu: `(sets, L)` fraction of variance unexplained, against the set's own mean.
        threshold: `(sets,)` the one number that codes must exceed for the set to have the L0 that all sets have
            together, in units of the codes: where these differ, one threshold for all gives sets different L0. A set
            that has fewer codes than that: its smallest code, which the threshold would have to be below.
        power: `(L, F, sets)` mean square of each feature's code over the set's tokens.
    """

    names: tuple[str, ...]
    images: np.ndarray
    counts: np.ndarray
    l0: np.ndarray
    fvu: np.ndarray
    threshold: np.ndarray
    power: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """`(L, F, sets)` share of the set's images on which a feature is active."""
        result: np.ndarray = self.counts / np.maximum(self.images, 1)
        return result

    def intervals(self, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Wilson's intervals of `rates`, each `(L, F, sets)`."""
        return wilson(self.counts, self.images, level)

    @property
    def q(self) -> np.ndarray:
        """`(L, F)` q-values of "used alike in all sets", over all features that fired."""
        return benjamini_hochberg(same_rate(self.counts, self.images))

    @property
    def explained(self) -> np.ndarray:
        """`(L, F)` how far the set tells whether an image has the feature, 0 to 1 (`explained_use`)."""
        return explained_use(self.counts, self.images)

    @property
    def entropy(self) -> np.ndarray:
        """`(L, F)` entropy of use, 0 (one set's own) to 1 (used alike)."""
        return use_entropy(self.rates)

    @property
    def strength_entropy(self) -> np.ndarray:
        """`(L, F)` the same of `power`: stray weak codes in a set that a feature is not of count for little."""
        return use_entropy(self.power)

    def kinds(self, fdr: float = 0.05) -> np.ndarray:
        """`(L, F)` int8, an index of `KINDS`.

        A feature is `specific` where the sets differ at this false-discovery rate and one has `OWN` of its use,
        `uneven` where they differ, and else `shared`: no difference was found, which few images may be the reason of.
        """
        share = self.rates / np.maximum(self.rates.sum(-1, keepdims=True), 1e-300)
        differs = np.nan_to_num(self.q, nan=1.0) <= fdr
        kinds = np.where(differs, np.where(share.max(-1) >= OWN, 3, 2), 1)
        result: np.ndarray = np.where(self.counts.sum(-1) > 0, kinds, 0).astype(np.int8)
        return result

    def table(self, fdr: float = 0.05) -> dict[str, Any]:
        """What a page or a file says of each set and each kind: plain numbers."""
        kinds = self.kinds(fdr)
        own = np.where(kinds == KINDS.index("specific"), self.rates.argmax(-1), -1)
        return {
            "sets": [
                {
                    "name": name,
                    "images": int(self.images[i]),
                    "l0": self.l0[i].tolist(),
                    "fvu": self.fvu[i].tolist(),
                    "threshold": float(self.threshold[i]),
                    "specific": [int((own[layer] == i).sum()) for layer in range(len(kinds))],
                }
                for i, name in enumerate(self.names)
            ],
            "kinds": {kind: [int((row == k).sum()) for row in kinds] for k, kind in enumerate(KINDS)},
        }

    def distinctive(self, study: int, top: int = 50, fdr: float = 0.05) -> list[dict[str, Any]]:
        """The features that a set uses more often than every other, those first whose use the set explains most.

        Args:
            study: number of the set.
            top: how many at most.
            fdr: false-discovery rate at which the sets must differ.
        """
        rates, (low, high), q = self.rates, self.intervals(), self.q
        entropy, explained = self.entropy, self.explained
        kinds = self.kinds(fdr)
        lead = rates[..., study] - np.delete(rates, study, -1).max(-1)
        leads = (lead > 0) & np.isin(kinds, [KINDS.index("uneven"), KINDS.index("specific")])
        order = np.argsort(-np.where(leads, explained, -1.0), axis=None, kind="stable")[: min(top, int(leads.sum()))]
        places = [tuple(int(i) for i in np.unravel_index(place, lead.shape)) for place in order]
        return [
            {
                "layer": at[0],
                "feature": at[1],
                "kind": KINDS[kinds[at]],
                "rates": rates[at].tolist(),
                "low": low[at].tolist(),
                "high": high[at].tolist(),
                "q": float(q[at]),
                "entropy": float(entropy[at]),
                "explained": float(explained[at]),
            }
            for at in places
        ]

    def to_json(self, fdr: float = 0.05, top: int = 50) -> dict[str, Any]:
        """As in `studies/results.json` (docs/results-schema.md)."""
        table = self.table(fdr)
        for number, entry in enumerate(table["sets"]):
            entry["distinctive"] = self.distinctive(number, top, fdr)
        return {"schema": 1, "fdr": fdr, "own": OWN, "level": LEVEL, **table}

    def arrays(self, fdr: float = 0.05) -> dict[str, np.ndarray]:
        """Of every feature: `counts`, `rates`, `low`, `high`, `power` `(L, F, sets)`; the rest `(L, F)`."""
        low, high = self.intervals()
        return {
            "names": np.asarray(self.names),
            "images": self.images,
            "counts": self.counts,
            "rates": self.rates,
            "low": low,
            "high": high,
            "q": self.q,
            "power": self.power,
            "explained": self.explained,
            "entropy": self.entropy,
            "strength_entropy": self.strength_entropy,
            "kind": self.kinds(fdr),
        }

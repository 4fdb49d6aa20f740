"""Which features of several transcoders are the same: every two of them matched, and what all pairs say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clt_lightning.analysis.feature_rows import KINDS, pair_of
from clt_lightning.analysis.matching import (
    KEPT,
    NEAR,
    STATES,
    LayerMatching,
    check_comparable,
    match_features,
)
from clt_lightning.analysis.one_to_one import Assignment
from clt_lightning.analysis.run import Run
from clt_lightning.analysis.stability.coordinates import owners_against_others
from clt_lightning.analysis.stability.groups import Anchors, ByRate, anchors_against_others, by_rate
from clt_lightning.analysis.stability.members import Member, differences, differing_keys, member, why_apart
from clt_lightning.analysis.stability.pairs import Spread, over_pairs
from clt_lightning.analysis.stability.subspace import Overlap, subspace_overlap
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.core.progress import track
from clt_lightning.runs.folder import find_run
from clt_lightning.transcoder import CrossLayerTranscoder

SCHEMA = 1
#: Numbers of a pair that are averaged over pairs
NUMBERS = ("kept", *(f"{name}_{kind}" for name in ("mmcs", "mcc") for kind in KINDS))


@dataclass(frozen=True)
class Subspaces:
    """The features of a layer that are not found again, as a group.

    Attributes:
        unstable: the first's and the second's unstable features: do they span the same directions?
        control: the first's unstable features against the second's kept ones.
    """

    unstable: Overlap | None
    control: Overlap | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            name: None if part is None else part.to_json()
            for name, part in (("unstable", self.unstable), ("control", self.control))
        }


@dataclass(frozen=True)
class PairStability:
    """Two of the members.

    Attributes:
        a: number of the first.
        b: number of the second.
        differ: what their trainings differ in (`members.differences`); None where nobody knows.
        layers: their features matched.
        subspaces: of each layer, by `decoder` and `encoder`.
        rates: stability by firing rate, of the first and of the second; None where rates are not known.
        anchors: features with one target against the others, of the first and of the second; None where none has two.
        coordinates: features that alone write to some coordinates against the others; None where none does.
    """

    a: int
    b: int
    differ: list[str] | None
    layers: list[LayerMatching] = field(repr=False)
    subspaces: list[dict[str, Subspaces]] = field(repr=False)
    rates: tuple[ByRate | None, ByRate | None] = field(repr=False)
    anchors: tuple[Anchors | None, Anchors | None] = field(repr=False)
    coordinates: tuple[Anchors | None, Anchors | None] = field(repr=False)

    def numbers(self) -> dict[str, float]:
        """Means over layers of both directions, by `NUMBERS`; `kept` is the share of all living features."""
        living = [[side.state != STATES.index("dead") for side in (layer.a, layer.b)] for layer in self.layers]
        total = sum(int(mask.sum()) for pair in living for mask in pair)
        kept = sum(layer.a.count("kept") + layer.b.count("kept") for layer in self.layers)
        out = {"kept": kept / total if total else float("nan")}
        for kind in KINDS:
            out[f"mmcs_{kind}"] = _mean([(layer.mmcs[kind] + layer.mmcs_b[kind]) / 2 for layer in self.layers])
            out[f"mcc_{kind}"] = _mean([layer.mcc[kind] for layer in self.layers])
        return out

    def nulls(self) -> dict[str, dict[str, float]]:
        """Means over layers of MMCS and MCC `both` with an untrained and with a mixed partner."""
        known = [layer.null for layer in self.layers if layer.null]
        return {
            name: {
                "mmcs_both": _mean([null[name]["both"] for null in known]),
                "mcc_both": _mean([null["mcc"][name]["both"] for null in known]),
            }
            for name in ("untrained", "mixed")
        }

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "a": self.a,
            "b": self.b,
            "differ": self.differ,
            **finite(self.numbers()),
            "null": finite(self.nulls()),
            "layers": [_layer_json(layer, found) for layer, found in zip(self.layers, self.subspaces, strict=True)],
            "rates": {name: None if r is None else r.to_json() for name, r in zip("ab", self.rates)},
            "anchors": {name: None if r is None else r.to_json() for name, r in zip("ab", self.anchors)},
            "coordinates": {name: None if r is None else r.to_json() for name, r in zip("ab", self.coordinates)},
        }


@dataclass(frozen=True)
class Comparison:
    """Several transcoders compared.

    Attributes:
        members: they.
        pairs: every two of them.
    """

    members: list[Member]
    pairs: list[PairStability]

    def mean(self) -> dict[str, Spread]:
        """Each number over all pairs, with an interval over runs (`pairs.over_pairs`) where all differ in the same.

        Runs that differ in different things are no sample of anything: of them there is the mean and the range alone.
        """
        found = [pair.numbers() for pair in self.pairs]
        where = [(pair.a, pair.b) for pair in self.pairs]
        alike = all(pair.differ == self.pairs[0].differ for pair in self.pairs)
        return {name: over_pairs([f[name] for f in found], where, len(self.members), alike) for name in NUMBERS}

    def by_difference(self) -> list[dict[str, Any]]:
        """The pairs that differ in the same things, together: how many, and the mean of each number."""
        groups: dict[tuple[str, ...] | None, list[dict[str, float]]] = {}
        for pair in self.pairs:
            key = None if pair.differ is None else tuple(pair.differ)
            groups.setdefault(key, []).append(pair.numbers())
        return [
            {
                "differ": None if key is None else list(key),
                "pairs": len(found),
                **finite({name: _mean([f[name] for f in found]) for name in NUMBERS}),
            }
            for key, found in groups.items()
        ]

    def found_in(self, number: int) -> np.ndarray:
        """`(L, F)` int: in how many of the others each feature of a member is kept; -1 for one that never fired."""
        clt = self.members[number].transcoder
        out = np.zeros((clt.n_layers, clt.n_features), int)
        dead = np.zeros_like(out, dtype=bool)
        for pair in self.pairs:
            if number in (pair.a, pair.b):
                sides = [layer.a if number == pair.a else layer.b for layer in pair.layers]
                state = np.stack([side.state for side in sides])
                out += state == STATES.index("kept")
                dead |= state == STATES.index("dead")
        return np.where(dead, -1, out)

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        others = len(self.members) - 1
        runs = []
        for number, entry in enumerate(self.members):
            found = self.found_in(number)
            clt = entry.transcoder
            runs.append(
                {
                    "title": entry.title,
                    "layers": clt.n_layers,
                    "features": clt.n_features,
                    "topology": clt.topology,
                    "alive": None if entry.alive is None else entry.alive.sum(1).tolist(),
                    "found_in": [int((found == n).sum()) for n in range(others + 1)],
                }
            )
        return {
            "schema": SCHEMA,
            "runs": runs,
            "differing": differing_keys(self.members),
            "mean": {name: spread.to_json() for name, spread in self.mean().items()},
            "by_difference": self.by_difference(),
            "pairs": [pair.to_json() for pair in self.pairs],
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """What each feature has in each other run: `<a>_<b>/state`, `partner`, `decoder`, `encoder`, `<a>/found_in`."""
        out = {f"{number}/found_in": self.found_in(number) for number in range(len(self.members))}
        for pair in self.pairs:
            for one, other, name in ((pair.a, pair.b, "a"), (pair.b, pair.a, "b")):
                sides = [getattr(layer, name) for layer in pair.layers]
                for what in ("state", "partner", "decoder", "encoder"):
                    out[f"{one}_{other}/{what}"] = np.stack([getattr(side, what) for side in sides])
        return out


def compare(
    runs: Sequence[str | Path | Run | CrossLayerTranscoder | Member],
    *,
    kept: float = KEPT,
    near: float = NEAR,
    assignment: Assignment = "auto",
    seed: int = 0,
    progress: bool = False,
    trust: bool = False,
) -> Comparison:
    """Compares the features of two or more transcoders of one backbone, every two of them.

    Args:
        runs: run folders, opened runs, folders of transcoders, or transcoders.
        kept: least cosine, of decoders and of encoders, of features that count as one.
        near: least cosine of a near pair.
        assignment: of PW-MCC, as `matching.match_features` takes it.
        seed: of nulls and intervals.
        progress: say how far it is.
        trust: whether a config.json may name an activation of another package, whose code is then run.

    Raises:
        UserError: fewer than two, one that is named twice, different backbones, sites or widths.
    """
    if isinstance(runs, str | Path | Run) or len(runs) < 2:
        raise UserError("compare takes two runs or more")
    places = [_place(run) for run in runs]
    for number, place in enumerate(places):
        if place is not None and place in places[:number]:
            raise UserError(f"{runs[number]} is named twice: compare takes different runs")
    members = [run if isinstance(run, Member) else member(run, n, trust=trust) for n, run in enumerate(runs)]
    for one, other in combinations(members, 2):
        if why := why_apart((one.title, other.title), (one.backbone, other.backbone)):
            raise UserError(f"{why[0].lower()}{why[1:]}")
        try:
            check_comparable(one.transcoder, other.transcoder)
        except UserError as error:
            raise UserError(f"{one.title} and {other.title}: {error}") from error
    numbers = list(combinations(range(len(members)), 2))
    pairs = []
    for a, b in track(numbers, "comparing", unit="pairs", show=progress):
        first, second = members[a], members[b]
        layers = match_features(
            first.transcoder,
            second.transcoder,
            first.alive,
            second.alive,
            kept,
            near,
            seed,
            progress and len(numbers) == 1,
            assignment,
        )
        pairs.append(pair_stability(first, second, layers, a, b, seed))
    return Comparison(members, pairs)


def pair_stability(
    first: Member, second: Member, layers: list[LayerMatching], a: int = 0, b: int = 1, seed: int = 0
) -> PairStability:
    """What a matching says of two members.

    Args:
        first: the first.
        second: the second.
        layers: their features matched.
        a: number of the first among the members.
        b: of the second.
        seed: of intervals and draws.
    """
    both = ((first, [layer.a for layer in layers]), (second, [layer.b for layer in layers]))
    rates = [None if m.rates is None else by_rate(sides, m.rates, seed) for m, sides in both]
    anchors = [anchors_against_others(m.transcoder, sides, m.rates, seed=seed) for m, sides in both]
    owners = [owners_against_others(m.transcoder, sides, m.power, m.rates, seed=seed) for m, sides in both]
    subspaces = [_subspaces(first.transcoder, second.transcoder, layer, seed) for layer in layers]
    return PairStability(
        *(a, b, differences(first, second), layers, subspaces),
        *((rates[0], rates[1]), (anchors[0], anchors[1]), (owners[0], owners[1])),
    )


def _subspaces(
    a: CrossLayerTranscoder, b: CrossLayerTranscoder, found: LayerMatching, seed: int
) -> dict[str, Subspaces]:
    def rows(side: Any, *states: str) -> torch.Tensor:
        return torch.from_numpy(np.flatnonzero(np.isin(side.state, [STATES.index(state) for state in states])))

    unstable_a, unstable_b = (rows(side, "split", "new") for side in (found.a, found.b))
    kept_b = rows(found.b, "kept")
    unstable, control = (pair_of(a, b, found.layer, unstable_a, theirs) for theirs in (unstable_b, kept_b))
    return {
        name: Subspaces(
            subspace_overlap(first[0], first[1], seed=seed), subspace_overlap(second[0], second[1], seed=seed)
        )
        for name, first, second in (
            ("decoder", unstable.decoders, control.decoders),
            ("encoder", unstable.encoders, control.encoders),
        )
    }


def _layer_json(layer: LayerMatching, subspaces: dict[str, Subspaces]) -> dict[str, Any]:
    counts = {name: {s: side.count(s) for s in STATES} for name, side in (("a", layer.a), ("b", layer.b))}
    numbers = {"mmcs": layer.mmcs, "mmcs_b": layer.mmcs_b, "mcc": layer.mcc, "near": layer.near, "kept": layer.kept}
    return {
        "layer": layer.layer,
        **counts,
        **finite(numbers),
        "assignment": layer.assignment,
        "null": finite(layer.null),
        "subspaces": {name: found.to_json() for name, found in subspaces.items()},
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _place(run: Any) -> Any:
    if isinstance(run, Member | CrossLayerTranscoder):
        return id(run)
    path = run.folder if isinstance(run, Run) else Path(run)
    try:
        return find_run(path, "compare").path.resolve()
    except UserError:
        return Path(path).resolve()

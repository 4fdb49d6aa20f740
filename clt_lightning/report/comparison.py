"""Two or more runs side by side: their numbers, what their configs differ in, which of their features are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from clt_lightning.analysis.intervals import mean_intervals
from clt_lightning.analysis.matching import STATES, LayerMatching, Side, check_comparable, match_features
from clt_lightning.analysis.results import load_arrays
from clt_lightning.analysis.stability import (
    Comparison,
    Member,
    PairStability,
    of_folder,
    pair_stability,
    why_apart,
)
from clt_lightning.core.config_file import read_config
from clt_lightning.core.errors import UserError
from clt_lightning.core.values import flat
from clt_lightning.report.numbers import to_list
from clt_lightning.report.record import shortened
from clt_lightning.report.source import Source
from clt_lightning.runs.folder import RunFolder

#: Features of each kind that the page names
NAMED = 24
_DRAWS = 1000
#: Where the runs' own places stand in a config: they always differ and say nothing
_PLACES = ("name", "runs_dir", "ckpt_path")


@dataclass(frozen=True)
class Matched:
    """The features of two of the runs.

    Attributes:
        a: number of the first run.
        b: number of the second.
        layers: what was found; empty where they cannot be compared.
        said: why they cannot be; empty where they can.
        found: what it says of their stability; None where they cannot be compared.
    """

    a: int
    b: int
    layers: list[LayerMatching]
    said: str = ""
    found: PairStability | None = None

    def side(self, run: int) -> list[Side]:
        """One run's features by layer."""
        return [layer.a if run == self.a else layer.b for layer in self.layers]


def match_runs(sources: Sequence[Source], progress: bool = False) -> tuple[list[Matched], dict[str, Any] | None]:
    """Matches the features of every two runs; and what all pairs say together, as `Comparison.to_json`.

    The second is None where no two can be compared. It is of the runs that can be: `runs` has their `number`.
    """
    members = [of_folder(source.run) if RunFolder(source.run).transcoder.is_dir() else None for source in sources]
    matches = [_match(a, b, sources, members, progress) for a, b in combinations(range(len(sources)), 2)]
    pairs = [match.found for match in matches if match.found is not None]
    taking = sorted({run for pair in pairs for run in (pair.a, pair.b)})
    known = [members[run] for run in taking]
    if not pairs:
        return matches, None
    numbered = [replace(pair, a=taking.index(pair.a), b=taking.index(pair.b)) for pair in pairs]
    told = Comparison([m for m in known if m is not None], numbered).to_json()
    for entry, run in zip(told["runs"], taking):
        entry["number"] = run
    return matches, told


def _match(a: int, b: int, sources: Sequence[Source], members: Sequence[Member | None], progress: bool) -> Matched:
    both = sources[a], sources[b]
    why = why_apart([source.title for source in both], [source.record.get("clip") or {} for source in both])
    if why:
        return Matched(a, b, [], why)
    for source, run in zip(both, (a, b)):
        if members[run] is None:
            return Matched(a, b, [], f"{source.title} has no transcoder/ folder: its weights are not there to compare.")
    first, second = (m for m in (members[a], members[b]) if m is not None)
    try:
        check_comparable(first.transcoder, second.transcoder)
    except UserError as error:
        return Matched(a, b, [], f"{str(error)[0].upper()}{str(error)[1:]}.")
    layers = match_features(first.transcoder, second.transcoder, first.alive, second.alive, progress=progress)
    return Matched(a, b, layers, found=pair_stability(first, second, layers, a, b))


def compare(sources: Sequence[Source], hrefs: Sequence[str], matches: Sequence[Matched]) -> dict[str, Any]:
    """What the page shows.

    Args:
        sources: the runs.
        hrefs: where each one's report is.
        matches: of every two.
    """
    return {
        "split": sources[0].split,
        "runs": [_numbers(source) | {"href": href} for source, href in zip(sources, hrefs)],
        "config": _config(sources),
        "accuracy": _paired(sources),
        "matches": [_told(match, sources) for match in matches],
    }


def _numbers(source: Source) -> dict[str, Any]:
    evaluation = source.evaluation or {}
    tables = evaluation.get("reconstruction") or {}
    transcoder = source.record.get("transcoder") or {}
    clip = source.record.get("clip") or {}
    activation = transcoder.get("activation") or {}
    fvu = _mean(tables, "fvu")
    return {
        "title": source.title,
        "images": evaluation.get("images"),
        "step": evaluation.get("step"),
        "backbone": clip.get("name"),
        "layers": transcoder.get("n_layers"),
        "features": transcoder.get("n_features"),
        "topology": transcoder.get("topology"),
        "skip": transcoder.get("skip"),
        "activation": str(activation.get("class_path", "")).rpartition(".")[2],
        "l0": _mean(tables, "l0"),
        "dead": _mean(tables, "dead"),
        "fvu": None if fvu is None else _spread(fvu, evaluation.get("population")),
        "arms": {
            task: _whole(evaluation, task, metric)
            for task, metric in (("zero_shot", "top1"), ("multilabel", "map"))
            if evaluation.get(task)
        },
    }


def _mean(tables: dict[str, Any], name: str) -> float | None:
    sets = tables.get(name) or {}
    chosen: dict[str, Any] = sets.get("all") or next(iter(sets.values()), {})
    value: float | None = chosen.get("mean")
    return value


def _spread(value: float, population: dict[str, Any] | None) -> dict[str, Any]:
    """FVU with the spread that resamples of the training split have, as many images as were evaluated."""
    for check in (population or {}).get("checks", ()):
        if check["discrepancy"] == "fvu" and None not in (check["train"], *check["quantiles"].values()):
            low, high = (check["quantiles"][q] - check["train"] for q in ("0.025", "0.975"))
            return {"value": value, "low": value + low, "high": value + high}
    return {"value": value, "low": None, "high": None}


def _whole(evaluation: dict[str, Any], task: str, metric: str) -> dict[str, Any]:
    arms, last = evaluation[task]["arms"], evaluation["layers"] - 1
    found = {"original": next((arm.get(metric) for arm in arms if arm["kind"] == "original"), None)}
    for kind in ("replaced", "mean_ablated"):
        place = (kind, 0, last, "all")
        arm: dict[str, Any] = next(
            (arm for arm in arms if (arm["kind"], arm["first"], arm["last"], arm["tokens"]) == place), {}
        )
        found[kind] = arm.get(metric)
        if kind == "replaced":
            found["drop"], found["kl"] = arm.get("drop"), arm.get("kl")
    return found


def _config(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Keys of config.yaml whose values are not the same in all runs, as text; None where a run has no such key."""
    tables = []
    for source in sources:
        path = RunFolder(source.run).config
        rows = flat(read_config(path).content) if path.is_file() else []
        tables.append({key: value for key, value in rows if key.split(".")[0] not in _PLACES})
    keys = dict.fromkeys(key for table in tables for key in table)
    return [
        {"key": key, "values": [None if key not in table else shortened(table[key]) for table in tables]}
        for key in keys
        if len({table.get(key) for table in tables}) > 1
    ]


def _paired(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """How much better the second of two runs is, all MLPs replaced: the same images, so that chance is shared."""
    columns = [_hits(source) for source in sources]
    out = []
    for a, b in combinations(range(len(sources)), 2):
        first, second = columns[a], columns[b]
        if first is None or second is None:
            continue
        shared = sorted(set(first) & set(second))
        if not shared:
            continue
        difference = np.array([[second[key] - first[key]] for key in shared], dtype=np.float64)
        found = mean_intervals(difference, _DRAWS, 0)[0]
        out.append({"a": a, "b": b, "images": len(shared), "difference": found.to_json()})
    return out


def _hits(source: Source) -> dict[str, int] | None:
    """By image: whether the replaced model names its class."""
    if source.evaluation is None or not source.evaluation.get("zero_shot"):
        return None
    name = f"replaced/0-{source.evaluation['layers'] - 1}/all"
    try:
        arrays = load_arrays(source.run, source.split)
    except UserError:
        return None
    if "rank" not in arrays or name not in arrays["arms"].tolist():
        return None
    rank = arrays["rank"][arrays["arms"].tolist().index(name)]
    return {key: int(place == 0) for key, place in zip(arrays["keys"].tolist(), rank.tolist()) if place >= 0}


def _told(match: Matched, sources: Sequence[Source]) -> dict[str, Any]:
    out: dict[str, Any] = {"a": match.a, "b": match.b, "said": match.said, "layers": []}
    if match.said:
        return out
    for layer in match.layers:
        out["layers"].append(
            {
                "layer": layer.layer,
                "a": {state: layer.a.count(state) for state in STATES},
                "b": {state: layer.b.count(state) for state in STATES},
                "mmcs": _rounded(layer.mmcs),
                "mcc": _rounded(layer.mcc),
                "null": {name: _rounded(layer.null[name]) for name in ("untrained", "mixed") if layer.null},
                "limit": _round(layer.null.get("limit")),
                "near": _round(layer.near),
                "kept": _round(layer.kept),
            }
        )
    out["examples"] = {
        "kept": _examples(match, sources, match.a, "kept"),
        "gone": _examples(match, sources, match.a, "new"),
        "split": _examples(match, sources, match.b, "split"),
        "new": _examples(match, sources, match.b, "new"),
    }
    rates = None if match.found is None else match.found.rates[0]
    out["rates"] = [] if rates is None else rates.to_json()["bins"]
    return out


def _round(value: Any) -> float | None:
    result: float | None = to_list([np.nan if value is None else value], 4)[0]
    return result


def _rounded(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _round(value) for name, value in values.items()}


def _examples(match: Matched, sources: Sequence[Source], run: int, state: str) -> list[list[Any]]:
    """The clearest features in a state: `[layer, feature, partner, decoder, encoder]`."""
    found = []
    features = sources[run].features
    for layer, side in enumerate(match.side(run)):
        chosen = np.flatnonzero(side.state == STATES.index(state))
        order = side.both[chosen]
        if features is not None and state != "kept":
            clear = np.nan_to_num(features.stats["monosemanticity"][layer, chosen], nan=-1.0)
            images = features.stats["image_frequency"][layer, chosen] * features.info["images"]
            order = np.where(images >= 20, clear, clear - 2)
        for place in np.argsort(-order, kind="stable")[:NAMED]:
            f = int(chosen[place])
            row = [layer, f, int(side.partner[f]), _round(side.decoder[f]), _round(side.encoder[f])]
            found.append((float(order[place]), row))
    found.sort(key=lambda entry: -entry[0])
    return [row for _, row in found[:NAMED]]


def partners(match: Matched, run: int, layer: int) -> dict[str, Any]:
    """A layer of a run: what each feature has in the other run; read by the pages (`data/match/`)."""
    side = match.side(run)[layer]
    return {
        "state": side.state.tolist(),
        "partner": side.partner.tolist(),
        "decoder": to_list(side.decoder, 3),
        "encoder": to_list(side.encoder, 3),
    }

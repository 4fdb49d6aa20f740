"""Cards of features, packed by 64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clt_lightning.analysis.features import Features
from clt_lightning.report.numbers import to_list
from clt_lightning.report.packing import pack_maps, pack_shares

CHUNK = 64
QUANTILE_ROWS = ("strongest quarter", "second quarter", "third quarter", "weakest quarter")
PER_QUANTILE = 4
#: Classes at either end of the total effect by class
ENDS = 8
Array = NDArray[Any]
Layer = Mapping[str, Array]


def chosen_features(frequency: Array, limit: int | None) -> Array:
    """Which features of a layer get a card.

    Args:
        frequency: `(F,)` share of tokens on which each is active.
        limit: only this many, the most frequent; None: all that ever fired.

    Returns:
        `(F,)` bool.
    """
    alive = np.asarray(frequency) > 0
    if limit is None or alive.sum() <= limit:
        return alive
    chosen = np.zeros_like(alive)
    chosen[np.argsort(-np.asarray(frequency), kind="stable")[:limit]] = True
    return chosen


def quantile_picks(images: Array) -> list[list[int]]:
    """Cuts one feature's sample, largest first, into four equal parts and picks up to four of each, evenly.

    Args:
        images: `(s,)` images, the one with the largest code first; -1 is padding.

    Returns:
        Places in the sample, a list for each of `QUANTILE_ROWS`; nothing for fewer than four images.
    """
    count = int((np.asarray(images) >= 0).sum())
    if count < len(QUANTILE_ROWS):
        return []
    rows = []
    for part in np.array_split(np.arange(count), len(QUANTILE_ROWS)):
        places = np.linspace(0, len(part) - 1, min(PER_QUANTILE, len(part)))
        rows.append([int(part[round(p)]) for p in places])
    return rows


def pack_cards(
    features: Features, layer: int, content: Layer, rows: Array, chosen: Array
) -> tuple[dict[str, Any], set[int]]:
    """One file of cards, and the images that it shows.

    Args:
        features: what `test` collected.
        layer: of the cards.
        content: `features.layers[layer]`.
        rows: features of the file.
        chosen: `(F,)` bool, which features of the layer have a card.
    """
    stats = features.stats
    out: list[dict[str, Any] | None] = []
    shown: set[int] = set()
    maps: list[Array] = []
    peaks: list[float] = []

    def entries(kind: str, row: int, places: Array | list[int], peak: float) -> list[list[Any]]:
        images = content[f"{kind}_image"][row][places].tolist()
        values = to_list(content[f"{kind}_value"][row][places])
        first = len(maps)
        shown.update(images)
        maps.extend(content[f"{kind}_map"][row][places])
        peaks.extend([peak] * len(images))
        return [[image, value, first + i] for i, (image, value) in enumerate(zip(images, values))]

    for row in rows.tolist():
        if not chosen[row]:
            out.append(None)
            continue
        top = np.flatnonzero(content["top_image"][row] >= 0)
        # AbsTopK codes can be negative, and [CLS] can be the strongest: the scale covers all that is drawn
        maps_here = (content["top_map"][row], content["sample_map"][row])
        peak = max(float(np.abs(part).max(initial=0.0)) for part in maps_here)
        picks = quantile_picks(content["sample_image"][row])
        out.append(
            {
                "peak": peak,
                "top": entries("top", row, top, peak),
                "quantiles": [[name, entries("sample", row, p, peak)] for name, p in zip(QUANTILE_ROWS, picks)],
                "decoder_norm": to_list(stats["decoder_norm"][layer, row, layer:], 4),
                "classes": named(stats["class_index"][layer, row], stats["class_share"][layer, row]),
                "nearest_classes": named(stats["nearest_class"][layer, row], stats["nearest_class_score"][layer, row]),
                "nearest_words": named(stats["nearest_word"][layer, row], stats["nearest_word_score"][layer, row]),
                "lift_high": to_list(stats["lift_high"][layer, row : row + 1], 4)[0],
                "histogram": histogram(stats["histogram"][layer, row]),
                "positions": pack_shares(stats["position_share"][layer, row]),
                "position_spread": to_list(stats["position_spread"][layer, row : row + 1], 4)[0],
                "does": effects_of(features, layer, row),
                "near": neighbours_of(features, layer, row),
            }
        )
    stacked = np.stack(maps) if maps else np.zeros((0, features.info["positions"]), np.float32)
    return {"cards": out, "maps": pack_maps(stacked, np.asarray(peaks, np.float64))}, shown


def named(indices: Array, scores: Array) -> list[list[Any]]:
    """Pairs (which, score), without padding."""
    return [[i, s] for i, s in zip(indices.tolist(), to_list(scores, 4)) if i >= 0 and s is not None]


def histogram(counts: Array) -> list[Any]:
    """The number of the first bin that is not empty, and the counts from there to the last one."""
    filled = np.flatnonzero(counts)
    return [] if not len(filled) else [int(filled[0]), counts[filled[0] : filled[-1] + 1].tolist()]


def effects_of(features: Features, layer: int, row: int) -> dict[str, Any] | None:
    """What one feature does to the logits: `direct`, `total`, and `classes`, by what images were predicted as.

    `classes`: mean total effect over the images predicted as a class (also where the feature is silent), the largest
    and the smallest ones; `own`: that of the class whose lift is largest.
    """
    effects = features.effects
    if effects is None:
        return None
    out: dict[str, Any] = {"images": int(effects["images"][layer, row])}
    for target in ("class", "margin"):
        numbers = (effects[f"{target}_{name}"][layer, row] for name in ("mean", "std", "sum"))
        out[target] = to_list(np.array(list(numbers), np.float64), 4)
    seen = np.flatnonzero(effects["predicted"] > 0)
    mean = effects["by_class"][layer, row, seen].astype(np.float64) / effects["predicted"][seen]
    order = np.argsort(-mean, kind="stable")
    ends = order if len(order) <= 2 * ENDS else np.concatenate([order[:ENDS], order[-ENDS:]])
    out["classes"] = [[c, v] for c, v in zip(seen[ends].tolist(), to_list(mean[ends], 4))]
    own = int(features.stats["lift_class"][layer, row])
    out["own"] = to_list(mean[seen == own], 4)[0] if own in seen else None
    if "direct" in effects:
        which, values = effects["direct_class"][layer, row], effects["direct"][layer, row]
        half = len(which) // 2
        # largest first, and where there are few classes each once
        found = dict(zip(which[:half].tolist(), to_list(values[:half], 4)))
        found |= {
            c: v for c, v in zip(which[: half - 1 : -1].tolist(), to_list(values[: half - 1 : -1], 4)) if c not in found
        }
        out["direct"] = [[c, v] for c, v in found.items()]
        out["through"] = to_list(effects["direct_by_target"][layer, row, layer:], 4)
    return out


def neighbours_of(features: Features, layer: int, row: int) -> dict[str, list[list[Any]]]:
    """The nearest features by kind, each `[layer, feature, score]`."""
    near = features.neighbours
    if near is None:
        return {}
    out = {}
    for kind in ("decoder", "encoder", "together", "reader", "writer"):
        if f"{kind}_feature" in near.arrays:
            which, scores = near[f"{kind}_feature"][layer, row], to_list(near[f"{kind}_score"][layer, row], 3)
            layers = near[f"{kind}_layer"][layer, row] if f"{kind}_layer" in near.arrays else np.full(len(which), layer)
            out[kind] = [[k, f, s] for k, f, s in zip(layers.tolist(), which.tolist(), scores) if f >= 0]
    return out

"""Whether predicted effects are what real ablation does: features on images, one gradient and integrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.collector import key_seeds
from clt_lightning.analysis.effects.collect import TARGETS, image_directions
from clt_lightning.analysis.effects.live import ablation_effects, integrated_effects, per_image, total_effects
from clt_lightning.analysis.intervals import Interval, weighted_interval
from clt_lightning.analysis.table import gather_rows
from clt_lightning.analysis.tower import observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.files import finite
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: Effects below this share of the largest are left out of the comparison of signs: they are rounding
_TINY = 1e-4


class ImageSample:
    """A sample of images by hash of their keys: the same ones for any order, batch size and number of processes.

    Args:
        n: how many.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._kept: list[tuple[int, str, Tensor]] = []

    def add(self, keys: Sequence[str], images: Float[Tensor, "images 3 size size"]) -> None:
        """Let a batch's images compete for a place."""
        if self.n:
            found = zip(key_seeds(keys).tolist(), keys, images)
            self._kept = sorted([*self._kept, *((s, k, i.cpu()) for s, k, i in found)], key=lambda e: e[:2])[: self.n]

    def gathered(self) -> Float[Tensor, "images 3 size size"] | None:
        """`(images, 3, size, size)` of all processes, sorted by key; None without any. Every process must call this."""
        everyone = sorted((entry for part in gather_rows(self._kept) for entry in part), key=lambda e: e[:2])
        chosen = sorted(everyone[: self.n], key=lambda entry: entry[1])
        return torch.stack([image for _, _, image in chosen]) if chosen else None


@dataclass(frozen=True)
class Agreement:
    """How a prediction goes with what ablation really does, over pairs of a feature and an image.

    Attributes:
        n: pairs.
        images: images among them.
        correlation: Pearson's, with its interval over images.
        slope: of the real effect on the predicted one, through the origin.
        signs: share of equal signs among pairs whose real effect is not rounding.
    """

    n: int
    images: int
    correlation: Interval
    slope: float
    signs: float

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "n": self.n,
            "images": self.images,
            "correlation": self.correlation.to_json(),
            "slope": finite(self.slope),
            "signs": finite(self.signs),
        }


def agreement(predicted: np.ndarray, real: np.ndarray, image: np.ndarray, draws: int, seed: int) -> Agreement:
    """Compare predicted with real effects.

    Args:
        predicted: `(pairs,)`.
        real: `(pairs,)`.
        image: `(pairs,)` which image: resamples draw images, since pairs of one image are not independent.
        draws: resamples.
        seed: their seed.
    """
    p, r = predicted.astype(np.float64), real.astype(np.float64)
    names, owner = np.unique(image, return_inverse=True)
    # sums of each image, from which the correlation of any resample follows
    columns = np.stack([np.ones_like(p), p, r, p * p, r * r, p * r], 1)
    sums = np.zeros((len(names), 6))
    np.add.at(sums, owner, columns)

    def correlation(weights: np.ndarray) -> np.ndarray:
        n, sp, sr, spp, srr, spr = (weights.astype(np.float64) @ sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            result: np.ndarray = ((spr - sp * sr / n) / np.sqrt((spp - sp * sp / n) * (srr - sr * sr / n)))[:, None]
            return result

    weighty = np.abs(r) > _TINY * np.abs(r).max(initial=0.0)
    return Agreement(
        len(p),
        len(names),
        weighted_interval(len(names), correlation, draws, seed)[0],
        float(p @ r / (p @ p)) if p @ p > 0 else math.nan,
        float((np.sign(p) == np.sign(r))[weighty].mean()) if weighty.any() else math.nan,
    )


@dataclass(frozen=True)
class EffectCheck:
    """The comparison, and the pairs behind it.

    Attributes:
        pairs: `layer`, `feature`, `image`, `chosen` (0: among the strongest, 1: random) and, by target,
            `<target>_real`, `<target>_gradient`, `<target>_integrated` (NaN where it was not computed).
        agreements: by target, method (`gradient`, `integrated`) and part (`all`, `strongest`, `random`, `layer_<l>`).
    """

    pairs: dict[str, np.ndarray]
    agreements: dict[str, dict[str, dict[str, Agreement]]] = field(repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `evaluation/<split>.npz` holds of it: `effects_<name>`."""
        return {f"effects_{name}": values for name, values in self.pairs.items()}

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            target: {method: {part: a.to_json() for part, a in parts.items()} for method, parts in methods.items()}
            for target, methods in self.agreements.items()
        }


@torch.no_grad()
def check_effects(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    head: Float[Tensor, "embed_dim classes"],
    images: Float[Tensor, "images 3 size size"],
    strength: np.ndarray,
    features: int = 200,
    pairs: int = 2048,
    integrated: int = 512,
    draws: int = 1000,
    seed: int = 0,
) -> EffectCheck | None:
    """Ablate features one at a time, on real images, and compare with what was predicted.

    Half of the features are the strongest over the split, half are drawn from the others; both among those that are
    active on these images.

    Args:
        clip: the backbone.
        clt: the transcoder.
        head: `(embed_dim, classes)`.
        images: `(images, 3, size, size)`, preprocessed.
        strength: `(L, F)` root of the summed squares of each feature's effects.
        features: how many features.
        pairs: at most so many pairs of a feature and an image; drawn at random where there are more.
        integrated: at most so many with integrated gradients, which cost `2 x NODES` times as much.
        draws: resamples behind the intervals.
        seed: of all draws.

    Returns:
        None where no feature is active.
    """
    images = images.to(clip.device)
    seen = observe(clip, images, clt=clt)
    codes = clt.encode(seen.x)
    directions = image_directions(head.to(clip.device).float(), seen.embeddings)[0]
    rng = np.random.default_rng(seed)
    positions = codes.n_tokens // len(images)
    found = _pairs(codes, total_effects(clip, clt, seen, codes, directions), len(images))
    if not len(found["layer"]):
        return None
    chosen = choose_features(found, strength, clt.n_features, features, rng)
    kept = chosen[found["layer"] * clt.n_features + found["feature"]]
    rows = np.flatnonzero(kept >= 0)
    if len(rows) > pairs:
        rows = np.sort(rng.choice(rows, pairs, replace=False))
    table = {name: found[name][rows] for name in ("layer", "feature", "image")} | {"chosen": kept[rows]}
    long_way = np.zeros(len(rows), bool)
    long_way[rng.choice(len(rows), min(integrated, len(rows)), replace=False)] = True
    real = np.full((len(TARGETS), len(rows)), np.nan)
    integral = np.full((len(TARGETS), len(rows)), np.nan)
    for layer in range(clt.n_layers):
        dense = None
        for part, real_ones, out in (
            (table["layer"] == layer, True, real),
            ((table["layer"] == layer) & long_way, False, integral),
        ):
            index = np.flatnonzero(part)
            if not len(index):
                continue
            dense = codes.dense_layer(layer).detach().unflatten(0, (-1, positions)) if dense is None else dense
            where = torch.from_numpy(table["image"][index]).to(clip.device)
            which = torch.from_numpy(table["feature"][index]).to(clip.device)
            z = dense[where, :, which]
            measured = ablation_effects if real_ones else integrated_effects
            values = measured(clip, clt, layer, which, z, seen, where, directions[:, where])
            out[:, index] = values.double().cpu().numpy()
    for t, target in enumerate(TARGETS):
        table |= {
            f"{target}_real": real[t],
            f"{target}_gradient": found[f"{target}_gradient"][rows],
            f"{target}_integrated": integral[t],
        }
    return EffectCheck(table, _agreements(table, clt.n_layers, draws, seed))


def choose_features(
    found: dict[str, np.ndarray], strength: np.ndarray, n_features: int, wanted: int, rng: np.random.Generator
) -> np.ndarray:
    """Which features are ablated: `(L * F,)` int8, 0 among the strongest, 1 drawn from the others, -1 not at all."""
    chosen = np.full(strength.size, -1, np.int8)
    active = np.unique(found["layer"] * n_features + found["feature"])
    order = active[np.argsort(-strength.reshape(-1)[active], kind="stable")]
    strongest = order[: (wanted + 1) // 2]
    others = order[len(strongest) :]
    drawn = rng.choice(others, min(wanted - len(strongest), len(others)), replace=False)
    chosen[strongest], chosen[drawn] = 0, 1
    return chosen


def _pairs(codes: Codes, effects: list[Tensor], n_images: int) -> dict[str, np.ndarray]:
    """Every (feature, image) with an active code, and its effects by one gradient, summed over positions."""
    parts: dict[str, list[np.ndarray]] = {}
    for layer, values in enumerate(effects):
        image, feature, sums = (part.cpu().numpy() for part in per_image(codes, layer, values, n_images))
        columns = {"layer": np.full(len(image), layer), "feature": feature, "image": image}
        columns |= {f"{target}_gradient": sums[t] for t, target in enumerate(TARGETS)}
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _agreements(
    table: dict[str, np.ndarray], n_layers: int, draws: int, seed: int
) -> dict[str, dict[str, dict[str, Agreement]]]:
    parts = {"all": np.ones(len(table["layer"]), bool)}
    parts |= {"strongest": table["chosen"] == 0, "random": table["chosen"] == 1}
    parts |= {f"layer_{layer}": table["layer"] == layer for layer in range(n_layers)}
    out: dict[str, dict[str, dict[str, Agreement]]] = {}
    for target in TARGETS:
        for method in ("gradient", "integrated"):
            predicted = table[f"{target}_{method}"]
            rows = {name: part & ~np.isnan(predicted) for name, part in parts.items()}
            out.setdefault(target, {})[method] = {
                name: agreement(predicted[part], table[f"{target}_real"][part], table["image"][part], draws, seed)
                for name, part in rows.items()
                if part.any()
            }
    return out

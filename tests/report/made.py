"""Made-up runs with known numbers, of any size: what `test` writes, and images to go with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.residual import Evolution
from clt_lightning.analysis.circuits.residual.matches import Matches
from clt_lightning.analysis.effects import Effects
from clt_lightning.analysis.features import Features
from clt_lightning.analysis.neighbours import Neighbours
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.report.circuit import pack_circuit
from clt_lightning.report.evolution import PLACE
from clt_lightning.report.studies import pack_study, picture_address
from tests.report.made_circuits import make_graph
from tests.report.made_steering import save_made_edits
from tests.report.made_studies import make_study

CLASSES = [f"{color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square", "star", "cross")]
WORDS = ["stripe", "corner", "sky", "edge", "dot", "shadow", "left", "bright"]


def interval(value: float, width: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def make_features(
    layers: int, n_features: int, n: int, grid: int = 4, k: int = 16, samples: int = 8, seed: int = 0
) -> Features:
    """Feature f prefers class f % C and the patches around f % grid**2; every 7th feature is dead."""
    rng = np.random.default_rng(seed)
    positions, classes = grid * grid + 1, len(CLASSES)
    labels = np.sort(rng.integers(0, classes, n))
    keys = [f"{i // 100:05d}/{i:08d}" for i in range(n)]
    alive = np.tile(np.arange(n_features) % 7 != 6, (layers, 1))
    shape = layers, n_features
    frequency = np.where(alive, 10 ** rng.uniform(-4, -0.5, shape), 0)
    own = (np.arange(n_features) % classes).astype(np.int32)
    others = np.stack([(own + i) % classes for i in range(5)], -1).astype(np.int32)
    shares = np.tile(np.array([0.6, 0.2, 0.1, 0.06, 0.04], np.float32), (n_features, 1))
    norms = np.zeros((layers, n_features, layers), np.float32)
    for source in range(layers):
        norms[source, :, source:] = rng.gamma(2.0, 0.3, (n_features, layers - source)) / (
            1 + np.arange(layers - source)
        )

    def by_layer(values: Any) -> np.ndarray:
        return np.where(
            alive[..., None], np.broadcast_to(values, (layers, n_features, 5)), -1 if values.dtype.kind == "i" else 0
        )

    mean = np.where(alive, rng.gamma(4.0, 0.5, shape), 0)
    stats = {
        "frequency": frequency,
        "image_frequency": np.minimum(frequency * 6, 1),
        "cls_frequency": frequency / 2,
        "mean_code": mean,
        "max_code": mean * 4,
        "label_entropy": np.where(alive, rng.uniform(0.2, 2.4, shape), np.nan),
        "monosemanticity": np.where(alive, rng.uniform(0.3, 0.95, shape), np.nan),
        "decoder_norm": norms,
        "class_share": by_layer(shares),
        "class_index": by_layer(others),
        "nearest_class": by_layer(others),
        "nearest_class_score": by_layer(shares * 0.4),
        "nearest_word": by_layer((others % len(WORDS)).astype(np.int32)),
        "nearest_word_score": by_layer(shares * 0.3),
    }
    stats |= made_names(alive, own, frequency, positions, np.random.default_rng(seed + 100))
    stats = {name: a.astype(np.int32 if a.dtype.kind == "i" else np.float32) for name, a in stats.items()}
    content = []
    for layer in range(layers):
        arrays: dict[str, np.ndarray] = {}
        for kind, count in (("top", k), ("sample", samples)):
            image = rng.integers(0, max(n // classes, 1), (n_features, count)) * classes + own[:, None]
            image = np.minimum(np.sort(image, 1), n - 1).astype(np.int32)
            value = -np.sort(-rng.uniform(0.2, 1.0, (n_features, count)), 1) * mean[layer][:, None] * 4
            on = rng.random((n_features, count, positions)) < 0.2
            maps = (on * rng.random((n_features, count, positions)) * value[..., None] * 0.9).astype(np.float32)
            strongest = 1 + np.arange(n_features) % (positions - 1)
            maps[np.arange(n_features), :, strongest] = value
            dead = ~alive[layer]
            image[dead], value[dead], maps[dead] = -1, 0, 0
            arrays |= {f"{kind}_image": image, f"{kind}_value": value.astype(np.float32), f"{kind}_map": maps}
        content.append(arrays)
    info = {
        "schema": 1,
        "split": "test",
        "images": n,
        "tokens": n * positions,
        "layers": layers,
        "features": n_features,
        "positions": positions,
        "grid": [grid, grid],
        "k": k,
        "samples": samples,
        "classnames": CLASSES,
        "words": WORDS,
        "clip": {},
        "transcoder": {},
    }
    effects = make_effects(alive, own, stats, n, rng)
    return Features(info, keys, labels, stats, content, effects, make_neighbours(alive, rng))


def made_names(
    alive: np.ndarray, own: np.ndarray, frequency: np.ndarray, positions: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Every feature is named by its class, but for dense ones, and each 5th (nothing) and 11th (position)."""
    shape = alive.shape
    number = np.broadcast_to(np.arange(shape[1]), shape)
    kind = np.where(number % 5 == 0, 0, np.where(number % 11 == 0, 3, 1))
    kind = np.where(alive, np.where(frequency > 0.1, 2, kind), 0)
    lift = np.where(alive, rng.uniform(2.5, 9.0, shape), np.nan)
    share = rng.dirichlet(np.ones(positions), shape) * alive[..., None]
    share[:, ::8, 1:] *= 0.1  # every 8th fires at [CLS]
    share[:, ::8, 0] = alive[:, ::8] - share[:, ::8, 1:].sum(-1)
    bins = np.arange(64)
    middle = rng.integers(30, 50, shape)
    histogram = (400 * np.exp(-((bins - middle[..., None]) ** 2) / 40)).astype(np.int64) * alive[..., None]
    return {
        "name_kind": kind,
        "lift_class": np.where(alive, own, -1),
        "lift": lift,
        "lift_low": lift * 0.8,
        "lift_high": lift * 1.3,
        "position_spread": np.where(alive, rng.uniform(0.1, 0.9, shape), np.nan),
        "position_share": share,
        "histogram": histogram,
    }


def make_effects(
    alive: np.ndarray, own: np.ndarray, stats: dict[str, np.ndarray], n: int, rng: np.random.Generator
) -> Effects:
    """A feature raises its own class, most of all directly; every 9th raises another, every 13th lowers its own."""
    layers, n_features = alive.shape
    classes = len(CLASSES)
    number = np.arange(n_features)
    images = np.rint(stats["image_frequency"] * n).astype(np.int32)
    direct = rng.normal(0, 0.3, (layers, n_features, classes))
    raised = np.where(number % 9 == 0, (own + 1) % classes, own)
    direct[:, number, raised] += np.where(number % 13 == 0, -3.0, 3.0)
    direct[:, number[number % 9 == 0], own[number % 9 == 0]] = -2.0
    direct -= direct.mean(-1, keepdims=True)
    order = np.argsort(-direct, axis=-1, kind="stable")
    ends = np.concatenate([order[..., :8], order[..., ::-1][..., :8]], -1)
    predicted = np.full(classes, n // classes)
    by_class = rng.normal(0, 0.5, (layers, n_features, classes))
    by_class[:, number, own] = (
        np.where(number % 13 == 0, -1.0, 1.0) * n / classes * rng.uniform(0.5, 3.0, (layers, n_features))
    )
    by_class[:, number[number % 9 == 0], own[number % 9 == 0]] = 0.0
    by_class *= alive[..., None]
    total = by_class.sum(-1)
    arrays: dict[str, np.ndarray] = {
        "images": images,
        "predicted": predicted,
        "by_class": by_class,
        "direct": np.take_along_axis(direct, ends, -1) * alive[..., None],
        "direct_class": ends,
        "direct_by_target": stats["decoder_norm"] * 0.2,
    }
    for target, factor in (("class", 1.0), ("margin", 0.6)):
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(alive, factor * total / np.maximum(images, 1), np.nan)
        arrays |= {
            f"{target}_mean": mean,
            f"{target}_std": np.abs(mean) * 0.4,
            f"{target}_sum": factor * total,
            f"{target}_strength": np.abs(np.nan_to_num(mean)) * np.sqrt(np.maximum(images, 1)),
        }
    return Effects({k: a.astype(np.int32 if a.dtype.kind == "i" else np.float32) for k, a in arrays.items()})


def make_neighbours(alive: np.ndarray, rng: np.random.Generator, n: int = 10) -> Neighbours:
    """Numbers near to one's own; readers lie in later layers, writers in earlier ones."""
    layers, n_features = alive.shape
    near = (np.arange(n_features)[:, None] + 1 + np.arange(n)) % n_features
    index = np.where(alive[..., None], np.broadcast_to(near, (layers, n_features, n)), -1)
    score = np.where(index >= 0, np.linspace(0.9, 0.1, n), 0.0)
    arrays: dict[str, np.ndarray] = {}
    for kind in ("decoder", "encoder", "together"):
        arrays |= {f"{kind}_feature": index, f"{kind}_score": score}
    for kind, towards in (("reader", 1), ("writer", -1)):
        layer = np.arange(layers)[:, None, None] + towards * (1 + np.arange(n) % 2)
        there = (index >= 0) & (layer >= 0) & (layer < layers)
        signs = np.where(rng.random(index.shape) < 0.3, -1.0, 1.0)
        arrays |= {
            f"{kind}_layer": np.where(there, layer, -1),
            f"{kind}_feature": np.where(there, index, -1),
            f"{kind}_score": np.where(there, 2 * score * signs, 0.0),
        }
    return Neighbours({k: a.astype(np.int32 if a.dtype.kind == "i" else np.float32) for k, a in arrays.items()})


def make_evolution(features: Features, seed: int = 3) -> Evolution:
    """Feature f follows f of the layer before, the less surely the larger f is; every 7th is dead, 10 to 19 are new."""
    generator = torch.Generator().manual_seed(seed)
    layers, n = features.info["layers"], features.info["features"]
    number = torch.arange(n)
    alive = number % 7 != 6
    rates = torch.from_numpy(features.stats["frequency"])

    def numbers(low: float, high: float) -> Tensor:
        values = low + (high - low) * torch.rand(layers, n, generator=generator)
        return torch.where(alive, values, float("nan"))

    def matches(top: float, new: float) -> Matches:
        value = (top - 0.4 * top * number / n)[:, None] * torch.tensor([1.0, 0.6, 0.5])
        value[10:20] = new
        feature = torch.stack([number, (number + 7) % n, (number + 14) % n], 1)
        return Matches(torch.where(alive[:, None], feature, -1), torch.where(alive[:, None], value, float("nan")))

    pairs = range(layers - 1)
    low = torch.full((n,), 0.2)
    return Evolution(
        tuple(range(layers)),
        200,
        16,
        rates,
        numbers(0, 0.3),
        numbers(0, 1),
        numbers(-0.1, 0.8),
        torch.where(alive, 40, 0).expand(layers, n),
        [matches(0.9 - 0.1 * pair, 0.15) for pair in pairs],
        [matches(0.95, 0.1) for _ in pairs],
        {"weights": [low for _ in pairs], "profiles": [low + 0.05 for _ in pairs]},
        [matches(0.3, 0.001) for _ in pairs],
        [0.5 - 0.3 * number / n for _ in pairs],
    )


def make_retrieval(features: Features, m: int = 8, seed: int = 1) -> Retrieval:
    """Images of one class share their codes up to noise."""
    rng = np.random.default_rng(seed)
    n, layers, n_features = len(features.keys), features.info["layers"], features.info["features"]
    base = (features.labels[:, None] * 5 + np.arange(m)) % n_features
    indices = np.broadcast_to(base, (layers, n, m)).astype(np.int32)
    values = rng.uniform(0.1, 1, (layers, n, m)).astype(np.float32)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return Retrieval(features.keys, features.labels, n_features, indices, values)


def make_evaluation(layers: int, n: int, seed: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sets = ["cls", "patch", "all"]

    def table(low: float, high: float) -> dict[str, Any]:
        out = {}
        for tokens in sets:
            values = np.sort(rng.uniform(low, high, layers)).tolist()
            out[tokens] = {"layers": values, "mean": float(np.mean(values))}
        return out

    def arm(kind: str, first: int | None, last: int | None, tokens: str | None, top1: float) -> dict[str, Any]:
        recall = rng.uniform(max(0.0, top1 - 0.1), min(1.0, top1 + 0.1), len(CLASSES)).tolist()
        return {
            "kind": kind,
            "first": first,
            "last": last,
            "tokens": tokens,
            "n": n,
            "top1": interval(top1),
            "top5": interval(min(1.0, top1 + 0.1)),
            "per_class_recall": interval(top1),
            "recall": recall,
            "kl": interval(2 * (0.93 - top1) + 0.011),
            "drop": interval(0.93 - top1),
        }

    arms = [arm("original", None, None, None, 0.93)]
    windows = [(first, layers - 1) for first in range(layers - 1)] + [(i, i) for i in range(layers)]
    for tokens in sets:
        for first, last in windows:
            share = (last - first + 1) / layers * (0.2 if tokens == "cls" else 1.0)
            arms.append(arm("replaced", first, last, tokens, 0.93 - 0.04 * share))
            arms.append(arm("true_x", first, last, tokens, 0.93 - 0.015 * share))
            arms.append(arm("mean_ablated", first, last, tokens, 0.93 - 0.8 * share))
            arms.append(arm("zero_ablated", first, last, tokens, 0.93 - 0.85 * share))
            arms.append(arm("random", first, last, tokens, 0.93 - 0.7 * share) | {"n": n // 5})
    contributions = {}
    for tokens in ("all",):
        raw = np.triu(rng.normal(0.3, 0.4, (layers, layers))) + 2 * np.eye(layers)
        uncentred = raw / raw.sum(0)
        other = raw + np.triu(rng.normal(0, 0.3, (layers, layers)))
        contributions[tokens] = {
            "tokens": n,
            "uncentred": uncentred.tolist(),
            "centred": (other / other.sum(0)).tolist(),
            "std_over_classes": np.triu(rng.uniform(0, 0.1, (layers, layers))).tolist(),
            "final_by_class": [None, *(uncentred[:, -1] + rng.normal(0, 0.02, (len(CLASSES) - 1, layers))).tolist()],
        }
        # no linear skip: its row is 0; the bias carries a tenth, and never varies
        skip, bias = np.zeros((1, layers)), np.full((1, layers), 0.1)
        whole = np.concatenate([0.9 * uncentred, skip, bias])
        contributions[tokens] |= {
            "whole_uncentred": whole.tolist(),
            "whole_centred": np.concatenate([contributions[tokens]["centred"], skip, 0 * bias]).tolist(),
            "whole_std_over_classes": np.concatenate([contributions[tokens]["std_over_classes"], skip, bias]).tolist(),
            "whole_final_by_class": [None, *([whole[:, -1].tolist()] * (len(CLASSES) - 1))],
        }
    faithfulness = [
        _faithfulness(layers, "cls", "image", "zero", n),
        _faithfulness(layers, "all", "dataset", "mean", n),
    ]
    checks = []
    given = (("fvu", 0.061), ("l0", 12.0), ("outliers", 0.01), ("kl", 0.05), ("accuracy_drop", 0.031))
    for name, value in given:
        resampled = np.sort(rng.normal(value, 0.08 * value, 200))
        quantiles = {str(q): float(np.quantile(resampled, q)) for q in (0.025, 0.5, 0.975)}
        held_out = value * (1.25 if name == "kl" else 1.02)
        checks.append(
            {
                "discrepancy": name,
                "tokens": "all",
                "first": 0 if name in ("kl", "accuracy_drop") else None,
                "last": layers - 1 if name in ("kl", "accuracy_drop") else None,
                "held_out": held_out,
                "train": value,
                "quantiles": quantiles,
                "p_value": float((resampled >= held_out).mean()),
                "p_two_sided": float(min(1, 2 * min((resampled >= held_out).mean(), (resampled <= held_out).mean()))),
                "resampled": resampled.tolist(),
            }
        )
    for kind, top1 in (("attention", 0.9), ("with_attention", 0.87), ("attention_mean", 0.02)):
        arms.append(arm(kind, 0, layers - 1, "all", top1))
    units = {"units": 40.0, "median": 1.5, "several": 0.25, "own": 0.75}
    one = {"layers": [0.04] * layers, "mean": 0.04}
    return {
        "schema": 1,
        "split": "test",
        "images": n,
        "labelled": n,
        "seconds": 48.1,
        "step": 2000,
        "transcoder": "checkpoints/last.ckpt",
        "layers": layers,
        "token_sets": sets,
        "classnames": CLASSES,
        "options": {},
        "reconstruction": {
            "mse": table(0.01, 0.2),
            "fvu": table(0.01, 0.12),
            "r2": table(0.88, 0.99),
            "cosine": table(0.93, 0.99),
            "l0": table(8, 12),
            "dead": table(0, 0.1),
        },
        "zero_shot": {"arms": arms},
        "attention": {"fvu": {"all": one}, "l0": {"all": one}, "dead": {"all": one}, "heads": [units] * layers},
        "multilabel": None,
        "retrieval": None,
        "contributions": contributions,
        "faithfulness": faithfulness,
        "shares": make_shares(layers),
        "effects": {
            target: {m: make_agreements(layers, c) for m, c in METHODS.items()} for target in ("class", "margin")
        },
        "population": {"train_images": n, "resamples": 1000, "checks": checks},
    }


METHODS = {"gradient": 0.93, "integrated": 0.998}
PARTS = {
    "embedding": 0.9,
    "attention": 49.0,
    "features": 24.8,
    "skip": 16.0,
    "bias": -4.8,
    "error": 0.5,
    "norm_bias": 0.3,
}


def make_agreements(layers: int, correlation: float) -> dict[str, Any]:
    names = ("all", "strongest", "random", *(f"layer_{layer}" for layer in range(layers)))
    return {
        name: {"n": 4096, "images": 64, "correlation": interval(correlation, 0.001), "slope": 0.98, "signs": 0.97}
        for name in names
    }


def make_shares(layers: int) -> dict[str, Any]:
    """Embedding, attention, features, ... whose means sum to the logit, and to the margin."""
    whole = {
        target: {part: scale * value for part, value in PARTS.items()}
        for target, scale in (("logit", 1), ("margin", 0.2))
    }
    table = {"layers": np.linspace(0.4, 0.8, layers).tolist(), "mean": 0.6}
    return {
        "features": {"cls": table, "patch": table, "all": table},
        "logit": {
            t: {p: interval(v, 0.2) for p, v in {**parts, "sum": sum(parts.values())}.items()}
            for t, parts in whole.items()
        },
    }


def _faithfulness(layers: int, tokens: str, ranking: str, ablation: str, n: int) -> dict[str, Any]:
    share = np.arange(layers + 1) / layers

    def curve(power: float) -> dict[str, Any]:
        values = 0.9 - 0.6 * share**power
        return {"top1": [interval(float(v)) for v in values], "kl": (2 * (0.9 - values)).tolist()}

    return {
        "layer": layers - 1,
        "tokens": tokens,
        "ranking": ranking,
        "ablation": ablation,
        "terms": layers,
        "n": n,
        "baseline": {"top1": interval(0.9), "kl": 0.0},
        "original": {"top1": interval(0.92)},
        "draws": 20,
        "rest": {"top1": interval(0.31), "kl": 1.4},
        "drop_top": curve(0.5),
        "drop_bottom": curve(3.0),
        "drop_random": curve(1.0),
        "auc": {"deletion": 0.41, "insertion": 0.75, "random": 0.58},
    }


class MadePictures:
    """A coloured shape for each class, on noise; studies whose terms sum to the logit."""

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, features: Features, size: int = 64) -> None:
        self.features, self.size = features, size
        self.labels = dict(zip(features.keys, features.labels.tolist()))

    def read(self, wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        # backwards: pages must not depend on the order of the data
        for key in sorted(wanted, reverse=True):
            yield key, self.image(key)

    def image(self, key: str) -> Tensor:
        number, label, s = int(key.split("/")[1]), self.labels[key], self.size
        generator = torch.Generator().manual_seed(number)
        pixels = torch.rand(3, s, s, generator=generator) * 0.12 + 0.78
        y, x = (
            torch.arange(s).float() - s / 2 + torch.randint(-s // 6, s // 6, (1,), generator=generator) for _ in "yx"
        )
        u, v = y[:, None] / s, x[None, :] / s
        shape = (
            u**2 + v**2 < 0.05,
            (u.abs() < 0.2) & (v.abs() < 0.2),
            u.abs() + v.abs() < 0.25,
            (u.abs() < 0.06) | (v.abs() < 0.06),
        )
        color = torch.tensor([[0.85, 0.2, 0.2], [0.2, 0.6, 0.3], [0.2, 0.35, 0.8]])[label // 4]
        pixels = torch.where(shape[label % 4], color[:, None, None], pixels)
        return (pixels - 0.5) / 0.25

    def study(self, images: Tensor, labels: Sequence[int], full: bool) -> list[dict[str, Any]]:
        """Every fifth image is mistaken for the class after its own."""
        info = self.features.info
        grid = tuple(info["grid"])
        out = []
        for image, label in zip(images, labels):
            seed = int((image * 1000).long().sum()) % (1 << 31)
            study = make_study(
                *(label, seed, len(CLASSES), info["layers"], info["features"], info["positions"], full), seed % 5 == 0
            )
            out.append(pack_study(study, to_pixels(image, self.mean, self.std), grid, full))
        return out

    def circuits(self, image: Tensor, key: str, label: int) -> dict[str, Any]:
        """Two circuits with every kind of node."""
        info = self.features.info
        graphs = [
            make_graph([name], int(key.split("/")[1]) + n, info["layers"], info["positions"])
            for n, name in enumerate((f"{CLASSES[label]} - {CLASSES[label - 1]}", CLASSES[label]))
        ]
        picture = {"picture": picture_address(to_pixels(image, self.mean, self.std)), "grid": list(info["grid"])}
        return picture | {"key": key, "label": label, "circuits": [pack_circuit(graph) for graph in graphs]}


RECORD = {
    "started": "2026-11-20T10:00:00+00:00",
    "command": "__main__.py fit --config configs/quickstart.yaml",
    "seed": 0,
    "versions": {"python": "3.11.2", "torch": "2.15.0+cpu", "lightning": "2.6.6"},
    "git": {"commit": "0" * 40, "dirty": False},
    "hardware": {"device": "cpu", "cpus": 2, "threads": 1, "processes": 1},
    "precision": "32-true",
    "clip": {"name": "demo", "quick_gelu": True},
    "transcoder": {"n_layers": 4, "n_features": 768, "topology": "cross_layer"},
    "data": {"class": "Demo", "classes": 12, "templates": ["a photo of a {c}."]},
}


def make_run(
    folder: Path, layers: int = 4, n_features: int = 160, n: int = 240, grid: int = 4, k: int = 16, samples: int = 8
) -> tuple[Path, MadePictures]:
    """A run's folder `<folder>/made/version_0` with everything that `test` writes."""
    run = folder / "made" / "version_0"
    run.mkdir(parents=True)
    features = make_features(layers, n_features, n, grid, k, samples)
    features.save(run)
    make_retrieval(features).save(run)
    results = {"schema": 1, "run": RECORD, "metrics": {}, "evaluation": {"test": make_evaluation(layers, n)}}
    (run / "results.json").write_text(json.dumps(results, allow_nan=False))
    (run / PLACE).parent.mkdir()
    about = {"run": "runs/made", "split": "test", "step": None}
    (run / PLACE).write_text(json.dumps(about | make_evolution(features).to_json(), allow_nan=False))
    (run / "config.yaml").write_text("name: made\nmodel:\n  transcoder: {n_features: 160}\n")
    pictures = MadePictures(features)
    labels = torch.from_numpy(np.array(features.labels, np.int64))
    save_made_edits(run, list(features.keys), labels, CLASSES, pictures.image)
    return run, pictures

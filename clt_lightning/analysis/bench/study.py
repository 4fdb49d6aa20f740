"""The bench: one pass over the images for each of two transcoders, the trained one and an untrained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.bench.features import Coherence, TopImages
from clt_lightning.analysis.bench.null import untrained
from clt_lightning.analysis.bench.readouts import SOURCES, PooledRows, Readouts, read_out
from clt_lightning.analysis.bench.result import BenchResult, Measure, Row
from clt_lightning.analysis.probes.images import POOLS, SPLITS, tokens_of_layers
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder

Batches = Callable[[], Iterable[Mapping[str, Any]]]
"""Makes an iterator over batches (`image`, `label`); called several times, always the same images."""


@dataclass(frozen=True)
class BenchOptions:
    """How the bench measures.

    Attributes:
        pool: how an image's tokens become the vector that probes read: `cls`, or `mean` or `max` over the patches.
        ks: of k-sparse probes.
        top: images of each feature that monosemanticity looks at.
        draws: bootstrap resamples.
        seed: of the untrained transcoder, of the controls and of the resamples.
    """

    pool: str = "mean"
    ks: tuple[int, ...] = (1, 5, 20)
    top: int = 16
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise UserError(f"pool: choose one of {', '.join(POOLS)}, got {self.pool!r}")
        if any(k < 1 for k in self.ks):
            raise UserError(f"a k-sparse probe reads at least one column, got k = {min(self.ks)}")
        if self.top < 2:
            raise UserError(f"top: monosemanticity compares at least 2 images of a feature, got {self.top}")
        if self.draws < 1:
            raise UserError(f"draws must be at least 1, got {self.draws}")


@dataclass
class _Found:
    """Of one transcoder: by layer, what was measured of features `(features, 2)`; read-outs, or why there are none."""

    coherence: list[np.ndarray]
    alike: list[np.ndarray]
    l0: list[float]
    readouts: list[Readouts]
    reason: str = ""
    images: dict[str, int] = field(default_factory=dict)


@torch.no_grad()
def bench(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    splits: Mapping[str, Batches],
    n_classes: int = 0,
    options: BenchOptions | None = None,
    *,
    embed: Callable[[Tensor], Tensor] | None = None,
    index: str = "own embedding",
    totals: Mapping[str, int] | None = None,
) -> BenchResult:
    """Measure a transcoder's features, reconstructions and codes, beside controls and an untrained transcoder.

    Args:
        clip: the frozen backbone.
        clt: the transcoder.
        splits: `train`, `val` and `test`. Features are measured on `test`; probes learn on `train`.
        n_classes: number of classes; below 2, probes are left out.
        options: how.
        embed: preprocessed images `(images, 3, size, size)` to unit embeddings `(images, width)`, which say how alike
            images are; None: the backbone's own.
        index: what that is called.
        totals: images of each split, for the progress lines.

    Raises:
        UserError: transcoder and backbone do not fit, a split without images, or a label beyond the classes.
    """
    options = options or BenchOptions()
    blocks, totals = check_fit(clip, clt), totals or {}
    layers = [str(clt.sites.read)] if clt.sites.once else [f"block {block}" for block in blocks]
    notes: list[str] = []
    reason = _no_probes(splits["train"], n_classes)
    null = untrained(clip, clt, splits["train"](), options.seed)
    embeddings = _embeddings(clip, embed, splits["test"], totals.get("test"))
    found: dict[str, _Found] = {}
    for name, transcoder in (("trained", clt), ("untrained", null)):
        found[name] = _measure(
            name,
            clip,
            transcoder,
            splits,
            0 if reason else n_classes,
            embeddings,
            options,
            totals,
            found.get("trained"),
        )
    trained, chance = found["trained"], found["untrained"]
    reason = reason or trained.reason
    if reason:
        notes.append(f"probes are left out: {reason}")
    measures = {m.name: m for m in _of_features(trained, chance, options, index)}
    if trained.readouts and chance.readouts:
        measures |= {m.name: m for m in _of_probes(trained.readouts, chance.readouts, options)}
    for name in [name for name, measure in measures.items() if not any(row.n for row in measure.trained)]:
        notes.append(f"{measures.pop(name).title}: nothing to measure (docs/bench.md says what counts)")
    l0 = {name: each.l0 for name, each in found.items()}
    return BenchResult(layers, measures, index, trained.images, l0, notes, options.seed)


def _no_probes(train: Batches, n_classes: int) -> str:
    """Why there can be no probes of classes; nothing if there can."""
    if n_classes < 2:
        return f"they need class names of two classes or more, and the data have {n_classes}"
    first = next(iter(train()), None)
    if first is not None and "multi_hot" in first:
        return "images are of several categories, and they need one label an image"
    if first is None or first.get("label") is None:
        return "the images have no labels"
    return ""


def _embeddings(
    clip: Backbone, embed: Callable[[Tensor], Tensor] | None, batches: Batches, total: int | None
) -> Tensor:
    parts = []
    with Progress("embeddings", total, "images") as bar:
        for batch in batches():
            image = batch["image"].to(clip.device)
            parts.append((clip.encode_image(image) if embed is None else embed(image)).float().cpu())
            bar.update(len(image))
    if not parts:
        raise UserError("split 'test' has no images")
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def _measure(
    name: str,
    clip: Backbone,
    clt: CrossLayerTranscoder,
    splits: Mapping[str, Batches],
    n_classes: int,
    embeddings: Tensor,
    options: BenchOptions,
    totals: Mapping[str, int],
    before: _Found | None,
) -> _Found:
    """One pass over the splits, and what is computed from it; what the backbone gives alone is taken from `before`."""
    L, F, seed = clt.n_layers, clt.n_features, options.seed
    tokens = clt.sites.read != "final"
    patches = clip.tokens.span("patch")
    maps = [Coherence(F, clip.grid, seed + layer) for layer in range(L)]
    tops = [TopImages(F, options.top) for _ in range(L)]
    active, n_tokens = torch.zeros(L, dtype=torch.float64), 0
    sources = SOURCES if before is None else SOURCES[1:]
    span = clip.tokens.span("cls") if options.pool == "cls" and tokens else patches
    rows = {split: PooledRows(L, sources, span, options.pool) for split in SPLITS}
    images = dict.fromkeys(SPLITS, 0)
    for split in SPLITS if n_classes else ("test",):
        with Progress(f"{name}, {split}", totals.get(split), "images") as bar:
            for batch in splits[split]():
                image = batch["image"].to(clip.device)
                label = batch["label"].cpu() if n_classes else torch.full((len(image),), -1)
                if int(label.max()) >= max(n_classes, 1):
                    raise UserError(f"split {split!r}: label {int(label.max())} is beyond the {n_classes} classes")
                rows[split].labels.append(label[label >= 0].long())
                for layer, seen in enumerate(tokens_of_layers(clip, clt, image, range(L))):
                    rows[split].add(layer, seen, label >= 0)
                    if split == "test":
                        codes = seen["codes"]
                        tops[layer].add(codes)
                        active[layer] += float((codes != 0).sum())
                        if tokens:
                            maps[layer].add(codes[:, patches])
                if split == "test":
                    n_tokens += len(image) * (clip.n_positions if tokens else 1)
                images[split] += len(image)
                bar.update(len(image))
    why = _unlabelled(rows) if n_classes else ""
    return _Found(
        [each.columns() for each in maps],
        [each.columns(embeddings, seed + layer) for layer, each in enumerate(tops)],
        (active / max(n_tokens, 1)).tolist(),
        _readouts(name, rows, n_classes, options, before) if n_classes and not why else [],
        why,
        images,
    )


def _unlabelled(rows: Mapping[str, PooledRows]) -> str:
    """Why probes cannot be learned from these labels; nothing if they can."""
    for split, part in rows.items():
        if not sum(map(len, part.labels)):
            return f"split {split!r} has no labelled image"
    if len(torch.cat(rows["train"].labels).unique()) < 2:
        return "the training images are of one class"
    return ""


def _readouts(
    name: str, rows: Mapping[str, PooledRows], n_classes: int, options: BenchOptions, before: _Found | None
) -> list[Readouts]:
    by_layer = {split: part.rows() for split, part in rows.items()}
    out = []
    n_layers = len(by_layer["train"])
    with Progress(f"{name}, probes", n_layers, "layers") as bar:
        for layer in range(n_layers):
            one = {split: layers[layer] for split, layers in by_layer.items()}
            found = read_out(one, n_classes, options.ks, options.seed + layer)
            if before is not None:
                found.whole["features"] = before.readouts[layer].whole["features"]
            out.append(found)
            bar.update()
    return out


def _of_features(trained: _Found, chance: _Found, options: BenchOptions, index: str) -> list[Measure]:
    def rows(columns: list[np.ndarray], first: int) -> list[Row]:
        # other features in every layer: other resamples
        return [Row.of(each, options.draws, options.seed + first + layer) for layer, each in enumerate(columns)]

    words = {
        "coherence": ("spatial coherence (Moran's I)", "features' maps", "shuffled positions"),
        "alike": (f"monosemanticity (cosine in: {index})", "top images", "random images"),
    }
    names = {"coherence": "coherence", "alike": "monosemanticity"}
    return [
        Measure(
            *(names[key], *text, "features"),
            rows(getattr(trained, key), 0),
            rows(getattr(chance, key), len(trained.l0)),
        )
        for key, text in words.items()
    ]


def _of_probes(trained: list[Readouts], chance: list[Readouts], options: BenchOptions) -> list[Measure]:
    def of(columns: np.ndarray) -> Row:
        return Row.of(columns, options.draws, options.seed)  # the same images everywhere: the same resamples

    def whole(readouts: list[Readouts], source: str) -> list[Row]:
        return [of(np.stack([each.whole[source], each.whole["features"]], 1)) for each in readouts]

    def sparse(readouts: list[Readouts], k: int) -> list[Row]:
        found = [next((s.right for s in each.sparse if s.k == k), np.empty((0, 2))) for each in readouts]
        return [of(columns) for columns in found]

    out = [
        Measure(
            *(source, f"linear probe of the {source}", source, "the site itself", "images"),
            whole(trained, source),
            whole(chance, source),
        )
        for source in SOURCES[1:]
    ]
    for k in dict.fromkeys(options.ks):
        columns = [next((s.columns for s in each.sparse if s.k == k), []) for each in trained]
        title = f"probe of {k:,} feature{'' if k == 1 else 's'} of the codes"
        out.append(
            Measure(
                *(f"sparse_{k}", title, "chosen on train", "random features", "images"),
                sparse(trained, k),
                sparse(chance, k),
                columns,
            )
        )
    return out

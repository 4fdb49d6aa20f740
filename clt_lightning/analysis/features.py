"""What every feature responds to, from one streaming pass over a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.analysis.collector import LayerCollector, key_seeds
from clt_lightning.analysis.effects import Effects
from clt_lightning.analysis.names import N_NAMES, embed_words, known_words, label_features, nearest_texts, read_words
from clt_lightning.analysis.neighbours import Neighbours
from clt_lightning.analysis.run_part import RunPart
from clt_lightning.analysis.table import gather_rows
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_json
from clt_lightning.core.tokens import TokenLayout
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

SCHEMA = 1


@dataclass
class FeatureOptions:
    """What is collected of every feature.

    Args:
        enabled: collect features at all.
        k: top images per feature.
        samples: further images per feature, drawn uniformly from those on which it is active, for quantile rows.
        words: file with words to name features by, one a line; null takes the list that comes with the package.
        device: where the collected state lives: cpu, or `auto` for the device of the model. Bytes:
            4 L F (k + samples) (positions + 4) + 8 L F (classes + embed_dim) + 4 L F (classes + positions + 64); the
            effects beside it take 8 L F (classes + 5).
    """

    enabled: bool = True
    k: int = 16
    samples: int = 8
    words: str | Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_fields(self, "features")
        self.words = str(self.words) if isinstance(self.words, Path) else self.words
        if self.k < 1 or self.samples < 0:
            raise UserError(f"features.k must be >= 1 and features.samples >= 0, got {self.k}, {self.samples}")
        if self.device not in ("cpu", "auto"):
            raise UserError(f"features.device must be cpu or auto, got {self.device!r}")


@dataclass(frozen=True)
class Features(RunPart):
    """Everything known of the features; arrays as documented in docs/results-schema.md.

    Attributes:
        info: what features.json holds.
        keys: the split's images, sorted; `top_image` and `sample_image` point into them.
        labels: `(n,)`, -1 for none.
        stats: `(L, F, ...)` arrays by name.
        layers: for each layer `top_image (F, k)`, `top_value (F, k)`, `top_map (F, k, P)`, `sample_...`.
        effects: what the features do to the logits; None where it was not measured.
        neighbours: which features are near to which; None where it was not measured.
    """

    folder_name = "features"

    info: dict[str, Any]
    keys: list[str] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    stats: dict[str, np.ndarray] = field(repr=False)
    layers: Sequence[dict[str, np.ndarray]] = field(repr=False)
    effects: Effects | None = field(default=None, repr=False)
    neighbours: Neighbours | None = field(default=None, repr=False)

    def at(self, step: int | None) -> Features:
        """The same, of the weights at this step."""
        return dataclasses.replace(self, info=self.info | {"step": step})

    def _write(self, folder: Path) -> None:
        np.savez_compressed(folder / "stats.npz", **self.stats)  # type: ignore[arg-type]
        for index, arrays in enumerate(self.layers):
            np.savez_compressed(folder / f"layer_{index:02d}.npz", **arrays)  # type: ignore[arg-type]
        if self.effects is not None:
            self.effects.save(folder)
        if self.neighbours is not None:
            self.neighbours.save(folder)
        write_json(folder / "images.json", {"keys": self.keys, "labels": self.labels.tolist()}, indent=None)
        write_json(folder / "features.json", self.info)


class _LayerFiles(Sequence[dict[str, np.ndarray]]):
    """`layer_<ll>.npz` of a folder, each read when it is asked for: all maps together would be gigabytes."""

    def __init__(self, folder: Path, n: int) -> None:
        self._paths = [folder / f"layer_{index:02d}.npz" for index in range(n)]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [_arrays(path) for path in self._paths[index]]
        return _arrays(self._paths[index])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def load_features(run: str | Path) -> Features:
    """Read `<run>/features/`; a layer's arrays are read whenever `layers[l]` is asked for.

    Raises:
        UserError: it is not there, or has another schema.
    """
    folder = Path(run) / "features"
    again = f"run `python -m clt_lightning test --run {run}`"
    if not (folder / "features.json").is_file():
        raise UserError(f"{folder} holds no features: {again}")
    info = read_json(folder / "features.json")
    if info.get("schema") != SCHEMA:
        raise UserError(f"{folder}: schema {info.get('schema')}, this version reads {SCHEMA}: {again}")
    images = read_json(folder / "images.json")

    labels = np.array(images["labels"], dtype=np.int64)
    stats, layers = _arrays(folder / "stats.npz"), _LayerFiles(folder, info["layers"])
    return Features(info, images["keys"], labels, stats, layers, Effects.load(folder), Neighbours.load(folder))


class FeatureCollector:
    """Collects the features of all layers over a stream of images.

    Args:
        clip: the backbone.
        clt: the transcoder.
        classnames: class names; empty without labels.
        options: what to collect.
    """

    def __init__(
        self, clip: FrozenCLIP, clt: CrossLayerTranscoder, classnames: Sequence[str], options: FeatureOptions
    ) -> None:
        self.clip, self.clt, self.classnames, self.options = clip, clt, list(classnames), options
        self.tokens = tokens_of(clip, clt)
        self.words = known_words(clip, read_words(options.words), options.words) if clip.has_text else []
        device = clip.device if options.device == "auto" else torch.device("cpu")
        self.layers = [
            LayerCollector(
                clt.n_features,
                self.tokens.n_positions,
                clip.embed_dim,
                len(self.classnames),
                options.k,
                options.samples,
                device,
            )
            for _ in range(clt.n_layers)
        ]
        self.embedding_sum = torch.zeros(clip.embed_dim, dtype=torch.float64)
        self.keys: list[str] = []
        self.labels: list[int] = []

    def update(
        self,
        codes: Codes,
        embeddings: Float[Tensor, "images embed_dim"],
        keys: Sequence[str],
        labels: Int[Tensor, " images"],
    ) -> None:
        """Take in one batch of whole images: their codes, unit embeddings, keys and labels (-1 for none)."""
        seeds = key_seeds(keys)
        for index, layer in enumerate(self.layers):
            layer.update(*codes.layer(index), embeddings, labels, seeds + index, len(self.keys))
        self.embedding_sum += embeddings.double().sum(0).cpu()
        self.keys.extend(keys)
        self.labels.extend(labels.tolist())

    def result(
        self, split: str, head: Float[Tensor, "embed_dim classes"] | None = None, effects: Effects | None = None
    ) -> Features | None:
        """The features of the whole split, on process 0; None on the others, all of which must call this.

        Args:
            split: its name.
            head: `(embed_dim, classes)` text embeddings of the classes; None without.
            effects: kept with the features.
        """
        everyone = gather_rows((self.keys, self.labels, self.embedding_sum))
        offsets = np.cumsum([0, *(len(part[0]) for part in everyone)])
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        for index, layer in enumerate(self.layers):
            layer.shift_images(int(offsets[rank]))
            if len(everyone) > 1:
                self.layers[index] = _merged(layer, rank, len(everyone))
        if rank != 0:
            return None
        keys = np.array([key for part in everyone for key in part[0]])
        order = np.argsort(keys, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        labels = np.array([label for part in everyone for label in part[1]], dtype=np.int64)[order]
        mean = torch.stack([part[2] for part in everyone]).sum(0) / max(len(keys), 1)
        stats = self._stats(len(keys), mean, head)
        layers = [
            _ranked("top", layer.top, layer.top.score, place) | _ranked("sample", layer.sample, None, place)
            for layer in self.layers
        ]
        return Features(self._info(split, len(keys)), keys[order].tolist(), labels, stats, layers, effects)

    def _info(self, split: str, images: int) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "split": split,
            "images": images,
            "tokens": images * self.tokens.n_positions,
            "layers": self.clt.n_layers,
            "features": self.clt.n_features,
            "positions": self.tokens.n_positions,
            "prefix": self.tokens.n_prefix,
            "grid": list(self.clip.grid),
            "k": self.options.k,
            "samples": self.options.samples,
            "classnames": self.classnames,
            "words": self.words,
            "clip": self.clip.describe(),
            "transcoder": self.clt.config(),
        }

    def _stats(self, images: int, mean_embedding: Tensor, head: Tensor | None) -> dict[str, np.ndarray]:
        names = {"class": None if head is None else head.T, "word": embed_words(self.clip, self.words)}
        norms = decoder_norms(self.clt)
        rows = [
            layer_stats(layer, images, self.tokens, mean_embedding, names, norms[index])
            for index, layer in enumerate(self.layers)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def layer_stats(
    layer: LayerCollector,
    images: int,
    tokens: TokenLayout,
    mean_embedding: Tensor,
    names: dict[str, Tensor | None],
    norms: Tensor,
) -> dict[str, np.ndarray]:
    """The statistics of one layer's features from its sums; arrays as in docs/results-schema.md."""
    s = {name: total.cpu() for name, total in layer.sums.items()}
    n_features = layer.n_features
    shares = s["class"] / s["class"].sum(1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(1) if layer.n_classes else torch.full((n_features,), torch.nan)
    class_index = torch.full((n_features, N_NAMES), -1, dtype=torch.int32)
    class_share = torch.zeros(n_features, N_NAMES)
    if layer.n_classes:
        share, index = shares.nan_to_num(0.0).topk(min(N_NAMES, layer.n_classes), 1)
        class_share[:, : share.shape[1]] = share.float()
        class_index[:, : share.shape[1]] = index.int().masked_fill(share <= 0, -1)
    out = {
        "frequency": s["tokens"] / (images * tokens.n_positions),
        "image_frequency": s["images"] / images,
        "cls_frequency": s["positions"][:, : int(tokens.has_cls)].double().sum(1) / images,
        "mean_code": s["code"] / s["tokens"].clamp(min=1),
        "max_code": layer.max_code.cpu(),
        "label_entropy": entropy,
        "monosemanticity": monosemanticity(s["ae"], s["a"], s["a2"], s["images"]),
        "decoder_norm": norms,
        "class_share": class_share,
        "class_index": class_index,
        "histogram": s["histogram"],
        "position_share": s["positions"] / s["tokens"].clamp(min=1)[:, None],
    }
    out |= label_features(
        s["class_images"],
        s["class_total"],
        s["positions"][:, tokens.n_prefix : tokens.n_prefix + tokens.n_patches],
        out["frequency"],
    )
    direction = F.normalize(s["ae"] / s["a"].clamp(min=1e-300)[:, None] - mean_embedding, dim=-1)
    for name, texts in names.items():
        index, score = nearest_texts(direction, texts)
        alive = s["images"][:, None] > 0
        out[f"nearest_{name}"] = index.masked_fill(~alive, -1)
        out[f"nearest_{name}_score"] = score.masked_fill(~alive, 0.0)
    return {k: v.numpy().astype(np.float32 if v.dtype.is_floating_point else np.int32) for k, v in out.items()}


def monosemanticity(ae: Tensor, a: Tensor, a2: Tensor, images: Tensor) -> Tensor:
    """How alike the images are that a feature responds to, from sums over images; `(F,)`.

    `MS = (||sum_i a_i e_i||^2 - sum a_i^2) / ((sum a_i)^2 - sum a_i^2)`: the mean cosine of all pairs of different
    images, weighted by the product of their activations, without ever making the pairs. NaN below two images.

    Args:
        ae: `(F, embed_dim)` sum of activation times unit embedding.
        a: `(F,)` sum of activations.
        a2: `(F,)` sum of their squares.
        images: `(F,)` number of images with an activation.
    """
    pairs = a.square() - a2
    return torch.where(images >= 2, (ae.square().sum(1) - a2) / pairs, torch.nan)


@torch.no_grad()
def decoder_norms(clt: CrossLayerTranscoder) -> Tensor:
    """`(L, F, L)` norm of what code 1 of each feature adds to each target layer, in the backbone's units."""
    out = torch.zeros(clt.n_layers, clt.n_features, clt.n_layers)
    for source, W in enumerate(clt.W_dec):
        n = clt.n_targets(source)
        out[source, :, source : source + n] = (W.norm(dim=-1) * clt.y_scale[source : source + n]).float().cpu()
    return out


def _merged(layer: LayerCollector, rank: int, world: int) -> LayerCollector:
    """All processes' collectors of one layer, merged in order of rank; called layer by layer, to bound the memory."""
    gathered: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(layer.to("cpu"), gathered)
    if gathered is None:
        return layer
    for other in gathered[1:]:
        gathered[0].merge(other)
    result: LayerCollector = gathered[0]
    return result


def _ranked(name: str, best: Any, score: Tensor | None, place: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of a `Best`, largest magnitude first (equal ones by image), images numbered in order of their keys."""
    image = best.image.cpu().numpy()
    image = np.where(image >= 0, place[image.clip(0)] if len(place) else -1, -1)
    value, maps = best.value.cpu().numpy(), best.map.cpu().numpy()
    order = np.lexsort((image, -np.abs(value), image < 0), axis=1)
    take = np.take_along_axis
    return {
        f"{name}_image": take(image, order, 1).astype(np.int32),
        f"{name}_value": take(value, order, 1),
        f"{name}_map": take(maps, order[:, :, None], 1),
    }

"""Whether a class's upstream concepts matter: set to their mean on its images, beside random and raw-weight choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from clt_lightning.analysis.circuits.faithful import Features, baseline_of
from clt_lightning.analysis.intervals import Interval, mean_intervals
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.mean_ablation import Feature, mean_ablated
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class ConceptAblation:
    """What is left of a class when concepts are set to their mean.

    Attributes:
        probability: the class's mean probability by arm, with its interval over images; `none` is the untouched model.
        accuracy: the share of images whose most probable class it is, by arm.
        table: by arm, `(images,)` probabilities.
    """

    probability: dict[str, Interval]
    accuracy: dict[str, Interval]
    table: dict[str, np.ndarray] = field(repr=False)


def mean_codes(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    images: Sequence[Float[Tensor, "*one 3 size size"]] | Float[Tensor, "n 3 size size"],
    batch: int = 16,
) -> Float[Tensor, "layers positions features"]:
    """`(layers, positions, F)`: each feature's mean code at each position over images (of training, say).

    Args:
        clip: the backbone.
        clt: its transcoder.
        images: preprocessed, each `(3, size, size)`.
        batch: so many at once.

    Raises:
        UserError: no images.
    """
    if not len(images):
        raise UserError("mean codes need at least one image")
    batches = lambda: ({"image": part} for part in _batches(images, batch))  # noqa: E731
    return baseline_of(clip, Features(clip, clt), batches, "mean").codes


@torch.no_grad()
def ablate_concepts(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    images: Sequence[Float[Tensor, "*one 3 size size"]] | Float[Tensor, "n 3 size size"],
    head: Float[Tensor, "embed_dim classes"],
    class_index: int,
    arms: Mapping[str, Sequence[Feature]],
    means: Float[Tensor, "layers positions features"],
    draws: int = 1000,
    seed: int = 0,
    batch: int = 64,
) -> ConceptAblation:
    """Put sets of features to their mean codes at every position, on images of a class, in the live model.

    Args:
        clip: the backbone.
        clt: its transcoder.
        images: of the class, not those that chose the features or made the means.
        head: `(embed_dim, classes)`.
        class_index: the class.
        arms: features of each arm, as (layer, feature).
        means: `(layers, positions, F)` from `mean_codes`.
        draws: resamples of images.
        seed: of these.
        batch: images at once.

    Raises:
        UserError: no images, no arms, or features that do not exist.
    """
    if not len(images) or not arms:
        raise UserError("ablation of concepts needs at least one image and one arm")
    if "none" in arms:
        raise UserError("an arm may not be called 'none': that is the untouched model")
    names = ["none", *arms]
    rows: list[list[Tensor]] = [[] for _ in names]
    for part in _batches(images, batch):
        for row, features in zip(rows, ((), *arms.values())):
            with mean_ablated(clip, clt, list(dict.fromkeys(features)), means):
                chances = clip.logits(clip.encode_image(part), head).double().softmax(1)
            right = (chances.argmax(1) == class_index).double()
            row.append(torch.stack([chances[:, class_index], right], 1).cpu())
    table = torch.stack([torch.cat(row) for row in rows], 2).numpy()  # (images, 2, arms + 1)
    intervals = [mean_intervals(table[:, i], draws, seed) for i in range(2)]
    return ConceptAblation(
        dict(zip(names, intervals[0])),
        dict(zip(names, intervals[1])),
        {name: table[:, 0, i] for i, name in enumerate(names)},
    )


def random_features(active: Shaped[Tensor, "layers features"], n: int, seed: int) -> list[Feature]:
    """n features drawn from those that are ever active.

    Args:
        active: `(layers, F)` images in which each is.
        n: how many.
        seed: of the draw.
    """
    places = active.nonzero()
    order = np.random.default_rng(seed).permutation(len(places))[:n]
    return [(int(layer), int(feature)) for layer, feature in places[torch.from_numpy(order)].tolist()]


def _batches(images: Sequence[Tensor] | Tensor, size: int) -> Iterator[Tensor]:
    """`(size or fewer, 3, side, side)` each."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield torch.cat([image[None] if image.ndim == 3 else image for image in part])

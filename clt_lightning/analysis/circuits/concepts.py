"""Whether a class's upstream concepts matter: put to their mean on its images, beside random and raw-weight choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.forward import embed_stream
from clt_lightning.analysis.circuits.image_model import model_of_image
from clt_lightning.analysis.circuits.nodeset import NodeEdit, NodeSet
from clt_lightning.analysis.circuits.rerun import rerun
from clt_lightning.analysis.intervals import Interval, mean_intervals
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder

Feature = tuple[int, int]


@dataclass(frozen=True)
class ConceptAblation:
    """What is left of a class when concepts are put to their mean.

    Attributes:
        probability: the class's mean probability by arm, with its interval over images; `none` is the untouched model.
        accuracy: the share of images whose most probable class it is, by arm.
        table: by arm, `(images,)` probabilities.
    """

    probability: dict[str, Interval]
    accuracy: dict[str, Interval]
    table: dict[str, np.ndarray] = field(repr=False)


@torch.no_grad()
def mean_codes(clip: Any, clt: CrossLayerTranscoder, images: Sequence[Tensor]) -> Tensor:
    """`(layers, positions, F)`: each feature's mean code at each position over images (of training, say)."""
    if not len(images):
        raise UserError("mean codes need at least one image")
    total: Tensor | None = None
    for image in images:
        acts = clip.capture(image[None] if image.ndim == 3 else image)
        codes = clt.encode(acts.y if clt.topology == "sae" else acts.x).dense().detach()
        total = codes if total is None else total + codes
    assert total is not None
    return total / len(images)


@torch.no_grad()
def ablate_concepts(
    clip: Any,
    clt: CrossLayerTranscoder,
    images: Sequence[Tensor],
    head: Tensor,
    class_index: int,
    arms: Mapping[str, Sequence[Feature]],
    means: Tensor,
    draws: int = 1000,
    seed: int = 0,
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

    Raises:
        UserError: no images, no arms, or features that do not exist.
    """
    if not len(images) or not arms:
        raise UserError("ablation of concepts needs at least one image and one arm")
    if "none" in arms:
        raise UserError("an arm may not be called 'none': that is the untouched model")
    sets = [_to_mean(features, means, name) for name, features in arms.items()]
    for nodes in sets:
        nodes.check(clt.n_layers, clt.n_features, means.shape[1])
    rows = []
    for image in images:
        model = model_of_image(clip, clt, image, skip="through")
        finals = rerun(model, sets, "live", codes=False).final
        embeddings = torch.cat([model.seen.embedding, embed_stream(model.parts, finals)])
        unit = torch.nn.functional.normalize(embeddings.float(), dim=-1)
        chances = (clip.logit_scale * unit @ head.float().to(unit)).double().softmax(1)
        right = (chances.argmax(1) == class_index).double()
        rows.append(torch.stack([chances[:, class_index], right]).cpu())
    table = torch.stack(rows).numpy()  # (images, 2, arms + 1)
    names = ["none", *arms]
    intervals = [mean_intervals(table[:, i], draws, seed) for i in range(2)]
    return ConceptAblation(
        dict(zip(names, intervals[0])),
        dict(zip(names, intervals[1])),
        {name: table[:, 0, i] for i, name in enumerate(names)},
    )


def random_features(active: Tensor, n: int, seed: int) -> list[Feature]:
    """n features drawn from those that are ever active.

    Args:
        active: `(layers, F)` images in which each is.
        n: how many.
        seed: of the draw.
    """
    places = active.nonzero()
    order = np.random.default_rng(seed).permutation(len(places))[:n]
    return [(int(layer), int(feature)) for layer, feature in places[torch.from_numpy(order)].tolist()]


def _to_mean(features: Sequence[Feature], means: Tensor, name: str) -> NodeSet:
    edits = [
        NodeEdit(layer, feature, position, "feature", "set", float(means[layer, position, feature]))
        for layer, feature in features
        for position in range(means.shape[1])
    ]
    return NodeSet(tuple(edits), name)

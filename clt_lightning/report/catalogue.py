"""The columns of the index of features, a layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clt_lightning.analysis.features import Features
from clt_lightning.report.packing import pack_column

Array = NDArray[Any]
#: Pictures of a feature in the gallery
CROPS = 4
#: Taken over from features/stats.npz
_STATS = (
    "frequency",
    "image_frequency",
    "cls_frequency",
    "mean_code",
    "max_code",
    "monosemanticity",
    "label_entropy",
    "lift",
    "lift_low",
)
#: Whether what a feature does goes with what drives it: `conflict`
AGREES, WRITES_OTHERS, PUSHES_AWAY = 0, 1, 2
#: Images of its class on which a feature must be active for that
FEWEST = 5


def columns(features: Features, layer: int) -> dict[str, Array]:
    """One layer's columns, each `(F,)`; floats have NaN where there is no number.

    Beside those of docs/results-schema.md: `images` on which the feature is active; `cls_share` of its firings that are
    at [CLS]; `written`, the effective number of layers that it writes to, and `reach`, how many layers ahead on
    average, both by squared norm; `effect` and `margin`, mean total effects where it is active, `strength`, the root
    mean square of the effect over all images of the split, and `conflict` (`AGREES`, `WRITES_OTHERS`, `PUSHES_AWAY`).
    """
    stats = features.stats
    out: dict[str, Array] = {name: stats[name][layer] for name in _STATS}
    alive = out["frequency"] > 0
    out |= {
        "class_share": stats["class_share"][layer, :, 0],
        "class_index": stats["class_index"][layer, :, 0].astype(np.int16),
        "nearest_class": stats["nearest_class"][layer, :, 0].astype(np.int16),
        "nearest_word": stats["nearest_word"][layer, :, 0].astype(np.int16),
        "name_kind": stats["name_kind"][layer].astype(np.int8),
        "lift_class": stats["lift_class"][layer].astype(np.int16),
        "images": np.rint(out["image_frequency"].astype(np.float64) * features.info["images"]).astype(np.int32),
        "cls_share": np.where(alive, stats["position_share"][layer, :, 0], np.nan),
        "conflict": conflict(features, layer),
    }
    energy = stats["decoder_norm"][layer, :, layer:].astype(np.float64) ** 2
    total = energy.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        out["written"] = total**2 / (energy**2).sum(1)
        out["reach"] = energy @ np.arange(energy.shape[1]) / total
    effects = features.effects
    if effects is not None:
        out["effect"] = effects["class_mean"][layer]
        out["margin"] = effects["margin_mean"][layer]
        out["strength"] = (
            np.where(alive, effects["class_strength"][layer], np.nan) / max(features.info["images"], 1) ** 0.5
        )
    return out


def conflict(features: Features, layer: int) -> Array:
    """`(F,)` int8: whether a feature with a class's name does something else than it says.

    Only features that are active on `FEWEST` images of their class or more are judged. `PUSHES_AWAY`: on the images
    that were predicted as its class its total effect is negative, by more than two standard errors. `WRITES_OTHERS`:
    its total effect there is not clearly positive either, and its class is not among the eight that its direct effect
    raises most.
    """
    effects, stats, labels = features.effects, features.stats, features.labels
    out = np.zeros(features.info["features"], np.int8)
    if effects is None or not (labels >= 0).any():
        return out
    prior = np.bincount(labels[labels >= 0], minlength=len(features.info["classnames"])) / (labels >= 0).sum()
    own = stats["lift_class"][layer]
    active = np.nan_to_num(stats["lift"][layer]) * prior[own] * effects["images"][layer]
    rows = np.flatnonzero((stats["name_kind"][layer] == 1) & (active >= FEWEST - 0.5))
    own = own[rows]
    error = effects["class_std"][layer, rows] * np.sqrt(active[rows])
    total = effects["by_class"][layer, rows, own]
    out[rows[total < -2 * error]] = PUSHES_AWAY
    if "direct" in effects:
        ends = effects["direct_class"].shape[-1] // 2
        raised = (effects["direct_class"][layer, rows, :ends] == own[:, None]).any(1)
        out[rows[(np.abs(total) <= 2 * error) & ~raised]] = WRITES_OTHERS
    return out


def layer_index(features: Features, layer: int) -> dict[str, str]:
    """One layer's columns as text, for `CLT.catalogue`."""
    index = {name: pack_column(values) for name, values in columns(features, layer).items()}
    return index | {"image": pack_column(features.layers[layer]["top_image"][:, 0])}


def layer_crops(features: Features, layer: int) -> tuple[dict[str, str], set[int]]:
    """The strongest images of one layer's features, and where each is strongest, for the gallery.

    Returns:
        `image` and `position`, both `(F * CROPS,)` as text: the image (-1: none), and the position of its largest code
        at a patch, 0 where only [CLS] is active; and the images.
    """
    content = features.layers[layer]
    image = content["top_image"][:, :CROPS]
    patches = np.abs(content["top_map"][:, :CROPS, 1:])
    position = np.where(patches.max(-1, initial=0) > 0, 1 + patches.argmax(-1), 0).astype(np.int16)
    short = CROPS - image.shape[1]
    if short:  # fewer top images were kept
        image, position = (np.pad(a, ((0, 0), (0, short)), constant_values=v) for a, v in ((image, -1), (position, 0)))
    shown = {int(i) for i in np.unique(image) if i >= 0}
    return {"image": pack_column(image.ravel().astype(np.int32)), "position": pack_column(position.ravel())}, shown


def feature_names(kind: Array, lift_class: Array, classnames: Sequence[str]) -> list[str]:
    """What each feature is called: its class, "dense", "position", or nothing."""
    words = ("", "", "dense", "position")
    return [classnames[c] if k == 1 else words[k] for k, c in zip(kind.tolist(), lift_class.tolist())]

"""The columns of the index of features, a layer at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from clt_lightning.analysis.features import Features
from clt_lightning.report.numbers import to_list

_COLUMNS = (
    "frequency",
    "image_frequency",
    "cls_frequency",
    "mean_code",
    "max_code",
    "monosemanticity",
    "label_entropy",
)


def layer_index(features: Features, layer: int) -> tuple[dict[str, Any], list[int]]:
    """One layer's columns, and the images that they name.

    Args:
        features: what `test` collected.
        layer: which.
    """
    stats, content = features.stats, features.layers[layer]
    columns: dict[str, Any] = {name: to_list(stats[name][layer], 4) for name in _COLUMNS}
    strongest = content["top_image"][:, 0]
    columns |= {
        "class_share": to_list(stats["class_share"][layer, :, 0], 4),
        "class_index": to_list(stats["class_index"][layer, :, 0]),
        "nearest_class": to_list(stats["nearest_class"][layer, :, 0]),
        "nearest_word": to_list(stats["nearest_word"][layer, :, 0]),
        "image": to_list(strongest),
    }
    return columns, [int(i) for i in np.unique(strongest) if i >= 0]

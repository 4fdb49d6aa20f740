"""The index of features: one data file a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clt_lightning.analysis.features import Features
from clt_lightning.report.cards import CHUNK
from clt_lightning.report.catalogue import CROPS, columns, feature_names, layer_crops, layer_index
from clt_lightning.report.draft import Draft
from clt_lightning.report.figures.curves import feature_scatter
from clt_lightning.report.numbers import to_list
from clt_lightning.report.page import Page
from clt_lightning.report.snippet import python_of

_META = ("layers", "features", "positions", "grid", "images", "split", "classnames", "words")
_TABLE = (
    *("frequency", "image_frequency", "cls_frequency", "mean_code", "max_code", "monosemanticity", "cls_share"),
    *("written", "reach", "lift", "lift_low", "effect", "margin", "strength"),
)


def write(draft: Draft) -> None:
    """Writes `features` (what they have in common), `layers/<ll>` (columns), `crops/<ll>`, a table and a figure."""
    features = draft.source.features
    if features is None:
        draft.data("features", None)
        return
    info, stats = features.info, features.stats
    own = {
        "chunk": CHUNK,
        "crops": CROPS,
        "effects": features.effects is not None,
        "python": python_of(draft.source.run, info["split"]),
    }
    draft.data("features", {name: info[name] for name in _META} | own)
    for layer in range(info["layers"]):
        draft.data(f"layers/{layer:02d}", layer_index(features, layer))
        crops, images = layer_crops(features, layer)
        draft.data(f"crops/{layer:02d}", crops)
        draft.show(images)
    draft.files["features"] = [
        *draft.figure("features", lambda: feature_scatter(stats["frequency"], stats["mean_code"])),
        draft.table("features", ["layer", "feature", "name", *_TABLE], _rows(features)),
    ]


def _rows(features: Features) -> Iterator[list[Any]]:
    """The table's rows: every feature, with its name."""
    for layer in range(features.info["layers"]):
        found = columns(features, layer)
        cells = [to_list(found[name]) if name in found else [None] * features.info["features"] for name in _TABLE]
        names = feature_names(found["name_kind"], found["lift_class"], features.info["classnames"])
        for feature, (name, row) in enumerate(zip(names, zip(*cells))):
            yield [layer, feature, name, *row]


PAGE = Page(
    name="features",
    title="Features",
    about="A gallery beside a sortable table, and a scatter whose axes you choose; search by class, word or number.",
    source="`features/`",
    addresses=("features", "features?layer=2&sort=monosemanticity", "features?text=red"),
    write=write,
)

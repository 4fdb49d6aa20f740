"""The index of features: one data file a layer."""

from __future__ import annotations

from clt_lightning.report.cards import CHUNK
from clt_lightning.report.catalogue import layer_index
from clt_lightning.report.draft import Draft
from clt_lightning.report.figures.curves import feature_scatter
from clt_lightning.report.numbers import to_list
from clt_lightning.report.page import Page

_META = ("layers", "features", "positions", "grid", "images", "split", "classnames", "words")
_TABLE = ("frequency", "image_frequency", "cls_frequency", "mean_code", "max_code", "monosemanticity")


def write(draft: Draft) -> None:
    """Writes `features` (what they have in common), `layers/<ll>` (their columns), a table and a figure."""
    features = draft.source.features
    if features is None:
        draft.data("features", None)
        return
    info, stats = features.info, features.stats
    draft.data("features", {name: info[name] for name in _META} | {"chunk": CHUNK})
    for layer in range(info["layers"]):
        columns, images = layer_index(features, layer)
        draft.data(f"layers/{layer:02d}", columns)
        draft.show(images)
    rows = (
        [layer, feature, *(to_list(stats[name][layer, feature : feature + 1])[0] for name in _TABLE)]
        for layer in range(info["layers"])
        for feature in range(info["features"])
    )
    draft.files["features"] = [
        *draft.figure("features", lambda: feature_scatter(stats["frequency"], stats["mean_code"])),
        draft.table("features", ["layer", "feature", *_TABLE], rows),
    ]


PAGE = Page(
    name="features",
    title="Features",
    about="Scatter, sortable and searchable table.",
    source="`features/`",
    addresses=("features", "features?layer=2&sort=monosemanticity", "features?text=red"),
    write=write,
)

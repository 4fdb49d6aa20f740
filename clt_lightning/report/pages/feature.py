"""The card of one feature: one data file for every 64."""

from __future__ import annotations

import numpy as np

from clt_lightning.report.cards import CHUNK, chosen_features, pack_cards
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes `cards/<ll>_<nnnn>`, a layer at a time: one layer's maps are in memory."""
    features = draft.source.features
    if features is None:
        return
    layers, n_features = features.info["layers"], features.info["features"]
    with draft.work("feature cards", layers * -(-n_features // CHUNK), "files") as work:
        for layer in range(layers):
            content = features.layers[layer]
            cards = chosen_features(features.stats["frequency"][layer], draft.options.features)
            for number, first in enumerate(range(0, n_features, CHUNK)):
                rows = np.arange(first, min(first + CHUNK, n_features))
                chunk, images = pack_cards(features, layer, content, rows, cards)
                draft.data(f"cards/{layer:02d}_{number:04d}", chunk)
                draft.show(images)
                work.update()


PAGE = Page(
    name="feature",
    title="Feature",
    about="A card per feature: what drives it, and what it does.",
    source="`features/`",
    under="features",
    addresses=("feature/1/3", "feature/1/6"),
    write=write,
)

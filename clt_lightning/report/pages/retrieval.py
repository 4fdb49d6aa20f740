"""For every layer the images that are nearest to a query by their codes."""

from __future__ import annotations

from typing import Any

from clt_lightning.core.progress import track
from clt_lightning.report.choice import named, spread
from clt_lightning.report.draft import Draft
from clt_lightning.report.numbers import to_list
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes `retrieval`: every query with its neighbours."""
    retrieval, options = draft.source.retrieval, draft.options
    if retrieval is None:
        draft.data("retrieval", None)
        return
    keys, labels = draft.source.images
    chosen = named(keys, options.query_keys, "--query") + spread(labels, options.queries)
    queries: list[dict[str, Any]] = []
    for image in track(dict.fromkeys(chosen), "retrieval", unit="queries", show=draft.progress, sums_up=True):
        nearest = [retrieval.nearest(image, layer, options.neighbours) for layer in range(retrieval.n_layers)]
        layers = [[[int(i), s] for i, s in zip(found, to_list(cosines, 4))] for found, cosines in nearest]
        draft.show([image, *(entry[0] for layer in layers for entry in layer)])
        queries.append(
            {
                "image": image,
                "key": keys[image],
                "class": labels[image],
                "label": draft.label(image),
                "layers": layers,
            }
        )
    draft.data("retrieval", queries)


PAGE = Page(
    name="retrieval",
    title="Retrieval",
    about="For every layer the images nearest by code.",
    source="`retrieval/`",
    addresses=("retrieval",),
    write=write,
)

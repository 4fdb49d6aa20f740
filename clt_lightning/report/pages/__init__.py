"""The one list of pages: navigation, build, tests and docs come from it, in this order."""

from __future__ import annotations

from clt_lightning.report.page import Page
from clt_lightning.report.pages import (
    cascade,
    compare,
    contributions,
    faithfulness,
    feature,
    features,
    image,
    images,
    live,
    notes,
    own,
    population,
    query,
    reconstruction,
    retrieval,
    search,
    summary,
)

#: The first is the front page; `data` that several pages read is written by the one that names it first
PAGES: tuple[Page, ...] = (
    summary.PAGE,
    compare.PAGE,
    features.PAGE,
    feature.PAGE,
    notes.PAGE,
    images.PAGE,
    image.PAGE,
    retrieval.PAGE,
    query.PAGE,
    reconstruction.PAGE,
    cascade.PAGE,
    contributions.PAGE,
    faithfulness.PAGE,
    population.PAGE,
    live.PAGE,
    search.PAGE,
    own.PAGE,
)

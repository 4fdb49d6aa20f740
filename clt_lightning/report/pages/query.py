"""One query of the retrieval page, layer by layer; its data come with that page's."""

from __future__ import annotations

from clt_lightning.report.page import Page

PAGE = Page(
    name="query",
    title="Query",
    about="One image and, layer by layer, those nearest to it.",
    source="`retrieval/`",
    under="retrieval",
    addresses=("query/1",),
)

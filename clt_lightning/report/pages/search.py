"""Images and features nearest to a phrase."""

from __future__ import annotations

from clt_lightning.report.page import Page

PAGE = Page(
    name="search",
    title="Search",
    about="Images and features that are nearest to a phrase by CLIP's text tower.",
    source="the model, through `serve`",
    needs="python -m clt_lightning serve --run {run}",
    optional=True,
    addresses=("search",),
)

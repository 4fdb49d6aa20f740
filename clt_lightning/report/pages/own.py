"""The page of an image that was dropped or picked."""

from __future__ import annotations

from clt_lightning.report.page import Page

PAGE = Page(
    name="own",
    title="An image of one's own",
    about="What the report's page of an image shows, for one that was dropped or picked.",
    source="the model, through `serve`",
    needs="python -m clt_lightning serve --run {run}",
    under="live",
    addresses=("own/1",),
)

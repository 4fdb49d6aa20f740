"""An image of one's own or of the split, and features that are moved by hand."""

from __future__ import annotations

from clt_lightning.report.page import Page

PAGE = Page(
    name="live",
    title="Try it",
    about="Drop an image, move features, and see what the model says then.",
    source="the model, through `serve`",
    needs="python -m clt_lightning serve --run {run}",
    optional=True,
    addresses=("live",),
)

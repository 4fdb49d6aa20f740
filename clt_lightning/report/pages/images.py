"""The images that have a page of their own."""

from __future__ import annotations

from clt_lightning.report.choice import named, spread
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Chooses them; `image` explains them and lists in `images` what it could explain."""
    draft.data("images", None)
    if draft.source.images[0] and draft.options.pictures:
        draft.want(chosen_images(draft))


def chosen_images(draft: Draft) -> list[int]:
    """Numbers of the images, those first that the user named."""
    keys, labels = draft.source.images
    chosen = named(keys, draft.options.image_keys, "--image") + spread(labels, draft.options.images)
    return list(dict.fromkeys(chosen))


PAGE = Page(
    name="images",
    title="Images",
    about="Images that have a page of their own.",
    source="the model, at report time",
    needs="python -m clt_lightning report --run {run} --images 24",
    addresses=("images",),
    write=write,
)

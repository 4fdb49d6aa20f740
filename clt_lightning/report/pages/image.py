"""One image: its strongest features of every layer, and its logit term by term."""

from __future__ import annotations

from typing import Any

from PIL import Image

from clt_lightning.clip.images import to_pixels
from clt_lightning.core.progress import track
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page
from clt_lightning.report.pages.images import chosen_images
from clt_lightning.report.pictures import Pictures


def finish(draft: Draft, pictures: Pictures) -> None:
    """Explains the chosen images: `images/<nnnn>` and a picture each, and `images`, their list."""
    keys, labels = draft.source.images
    overview: list[dict[str, Any]] = []
    there = [(number, image) for number in chosen_images(draft) if (image := draft.image(number)) is not None]
    for number, image in track(there, "explanations", unit="images", show=draft.progress, sums_up=True):
        page = len(overview)
        found = pictures.explain(keys[number], image, labels[number])
        if found is None:
            draft.note("The data has no class names: no logit to explain, and no pages of images.")
            break
        picture = f"pictures/{page:04d}.webp"
        pixels = Image.fromarray(to_pixels(image, pictures.mean, pictures.std))
        pixels.save(draft.folder.file(picture), quality=90, method=4)
        label = draft.label(number)
        best = max(found["classes"], key=lambda entry: entry["original"], default=None)
        draft.data(f"images/{page:04d}", {**found, "picture": picture, "title": label or found["classname"]})
        overview.append(
            {
                "image": number,
                "key": keys[number],
                "label": label,
                "predicted": "" if best is None else best["name"],
            }
        )
    draft.data("images", overview or None)


PAGE = Page(
    name="image",
    title="Image",
    about="Strongest features of every layer; the class logit term by term.",
    source="the model, at report time",
    needs="python -m clt_lightning report --run {run} --images 24",
    under="images",
    addresses=("image/2",),
    finish=finish,
)

"""One image: why this class and not that one, what decides it, and what happens without."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page
from clt_lightning.report.pages.images import full_images, mistaken
from clt_lightning.report.pictures import Pictures

#: Images studied at once, and those in full, of which each is many rows
_AT_ONCE, _FULL_AT_ONCE = 16, 4


class _Pages:
    """Studies images as they come and writes `data/images/<number>.js`; remembers what the list of them tells."""

    def __init__(self, draft: Draft, full: list[int]) -> None:
        self.draft, self.full = draft, full
        self.known: dict[int, dict[str, Any]] = {}
        self._waiting: dict[bool, list[tuple[int, Tensor]]] = {False: [], True: []}

    def take(self, pictures: Pictures, number: int, image: Tensor) -> None:
        full = number in self.full
        self._waiting[full].append((number, image))
        if len(self._waiting[full]) == (_FULL_AT_ONCE if full else _AT_ONCE):
            self._study(pictures, full)

    def finish(self, pictures: Pictures) -> None:
        for full in (False, True):
            if self._waiting[full]:
                self._study(pictures, full)

    def _study(self, pictures: Pictures, full: bool) -> None:
        numbers = [number for number, _ in self._waiting[full]]
        images = torch.stack([image for _, image in self._waiting[full]])
        self._waiting[full] = []
        keys, labels = self.draft.source.images
        for number, page in zip(numbers, pictures.study(images, [labels[number] for number in numbers], full)):
            self.draft.data(address(number), page | {"image": number, "key": keys[number], "label": labels[number]})
            told: dict[str, Any] = {"image": number, "full": full}
            if page["classes"] is not None:
                told |= dict(zip(("predicted", "replaced"), page["tops"]))
            self.known[number] = told


def address(number: int) -> str:
    """Where an image's data are."""
    return f"images/{number:05d}"


def write(draft: Draft) -> None:
    """Asks for the images; each is studied when it is read."""
    draft.data("images", None)
    keys, _ = draft.source.images
    if not keys or not draft.options.pictures:
        return
    full = full_images(draft)

    def choose(shown: AbstractSet[int]) -> list[int]:
        first = dict.fromkeys([*full, *mistaken(draft), *sorted(shown), *range(len(keys))])
        return list(first)[: max(draft.options.pages, len(full))]

    draft.kept["images"] = _Pages(draft, full)
    draft.each(choose, draft.kept["images"].take, pages=True)


def finish(draft: Draft, pictures: Pictures) -> None:
    """Writes `images`: the list of pages, in the order of the split."""
    pages: _Pages = draft.kept["images"]
    pages.finish(pictures)
    keys, _ = draft.source.images
    known = [pages.known[number] for number in sorted(pages.known)]
    missing = len(keys) - len(known)
    draft.data(
        "images",
        {
            "image": [entry["image"] for entry in known],
            "full": [number for number in pages.full if number in pages.known],
            "predicted": [entry["predicted"] for entry in known] if known and "predicted" in known[0] else None,
            "replaced": [entry["replaced"] for entry in known] if known and "replaced" in known[0] else None,
            "without": missing,
        }
        if known
        else None,
    )


PAGE = Page(
    name="image",
    title="Image",
    about="One image: why this class and not that one, term by term and feature by feature; what happens without them.",
    source="the model, at report time",
    needs="python -m clt_lightning report --run {run} --images 24",
    under="images",
    addresses=("image/2", "image/2?more=1&less=mean&by=layer", "image/7?more=3&model=replaced"),
    write=write,
    finish=finish,
)

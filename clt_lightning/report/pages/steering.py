"""Edits that were saved, and what came of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures.steering import steering_figure
from clt_lightning.report.page import Page
from clt_lightning.report.saved_edits import saved_edits
from clt_lightning.report.source import Source

#: What the list of edits shows of each; the rest is read with the edit
_LISTED = ("name", "split", "tokens", "base", "nodes", "images", "labelled", "changed", "top1", "flips")


def write(draft: Draft) -> None:
    """Writes `steering`, the list, and `steering/<name>` for each edit."""
    saved, others = saved_edits(draft.source.run, draft.source.id.step)
    if others:
        draft.note(f"Edits of other weights are not shown: {', '.join(others)} (`steer --save` again).")
    place = {key: number for number, key in enumerate(draft.source.images[0])}
    for record in saved:
        here = place if record["split"] == draft.source.split else {}
        draft.data(f"steering/{record['name']}", edit_data(record, here, draft.options.pictures))
        images = [image for way in record["pictures"].values() for image in way]
        draft.show(here[image["key"]] for image in images if image["key"] in here)
        if draft.options.pictures:
            name = f"steering_{record['name']}"
            draft.files[name] = draft.figure(name, partial(steering_figure, record))
    draft.data("steering", edits_list(saved))


def edits_list(saved: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """What `data/steering.js` holds; None without edits."""
    rows = [{key: record[key] for key in _LISTED} for record in saved]
    for row, record in zip(rows, saved):
        row |= {"edits": record["edits"][:8], "count": len(record["edits"])}
    return rows or None


def edit_data(record: dict[str, Any], place: dict[str, int], pictures: bool = True) -> dict[str, Any]:
    """What `data/steering/<name>.js` holds: the record, with the images' numbers in the report.

    Args:
        record: of `saved_edits`.
        place: numbers of the report's images, by key.
        pictures: whether the report has any.
    """

    def placed(image: dict[str, Any]) -> dict[str, Any]:
        return image | {"image": place.get(image["key"]), "picture": image["picture"] if pictures else None}

    shown = {way: [placed(image) for image in images] for way, images in record["pictures"].items()}
    return record | {"pictures": shown}


def fresh(source: Source) -> dict[str, Any]:
    """The page's data as they are now, by name: what a server shows of edits that were saved after the report."""
    saved, _ = saved_edits(source.run, source.id.step)
    place = {key: number for number, key in enumerate(source.images[0])}
    own = {f"steering/{r['name']}": edit_data(r, place if r["split"] == source.split else {}) for r in saved}
    return own | {"steering": edits_list(saved)}


PAGE = Page(
    name="steering",
    title="Steering",
    about="Edits of features that were saved: classes that gain and lose, and the images named otherwise, both ways.",
    source="`steering/`; live through `serve`",
    needs="python -m clt_lightning steer --run {run} --scale LAYER/FEATURE=0 --save NAME",
    optional=True,
    addresses=("steering", "steering/many"),
    write=write,
)

"""Stars, names and comments that people give to features."""

from __future__ import annotations

from clt_lightning.report.draft import Draft
from clt_lightning.report.notes import notes_of
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes `notes`: by `<layer>/<feature>`, from the files of `--notes`."""
    transcoder = draft.source.record.get("transcoder") or {}
    known = transcoder if draft.source.features is None else draft.source.features.info
    layers, features = known.get("layers", known.get("n_layers")), known.get("features", known.get("n_features"))
    draft.data("notes", notes_of(draft.options.notes, draft.source.id, layers or 0, features or 0))


PAGE = Page(
    name="notes",
    title="Notes",
    about="Features that were starred, named or commented on; kept in the browser, taken along as a file.",
    source="the reader, and `--notes FILE`",
    addresses=("notes",),
    write=write,
)

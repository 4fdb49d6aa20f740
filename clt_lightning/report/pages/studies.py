"""Which features several data sets share, and which are one set's own."""

from __future__ import annotations

from clt_lightning.core.files import read_json
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes `studies`: what the command `studies` has measured; null where it has not been run."""
    path = draft.source.run / "studies" / "results.json"
    draft.data("studies", read_json(path) if path.is_file() else None)


PAGE = Page(
    name="studies",
    title="Studies",
    about="Several data sets: L0, FVU and threshold of each; which features they share, and which are one set's own.",
    source="`studies/results.json`",
    needs="python -m clt_lightning studies --run {run}",
    optional=True,
    addresses=("studies",),
    write=write,
)

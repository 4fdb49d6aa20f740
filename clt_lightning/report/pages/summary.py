"""The front page: what was trained, on what, and the numbers to look at first."""

from __future__ import annotations

from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page
from clt_lightning.report.record import record_sections
from clt_lightning.report.source import read_config


def write(draft: Draft) -> None:
    """Writes `summary`."""
    source = draft.source
    draft.data(
        "summary",
        {
            "record": record_sections(source.record, (source.evaluation or {}).get("run")),
            "config": read_config(source.run),
        },
    )


PAGE = Page(
    name="summary",
    title="Summary",
    about="The run's record, and the numbers to look at first.",
    source="`results.json`",
    addresses=("",),
    write=write,
)

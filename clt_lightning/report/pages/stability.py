"""Which features are found again: over seeds, data orders and settings."""

from __future__ import annotations

from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes `stability`: what the command `compare` tells of the runs that can be compared."""
    draft.data("stability", draft.together.stability)


PAGE = Page(
    name="stability",
    title="Stability",
    about="Several runs: how many features are found again, against chance; by firing rate, as a group, anchors.",
    source="the runs' `transcoder/`, `config.yaml`, `features/`",
    needs="python -m clt_lightning report --run {run} --run ANOTHER",
    optional=True,
    addresses=("stability",),
    write=write,
)

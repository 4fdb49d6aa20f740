"""Held-out numbers against what the training split makes likely."""

from __future__ import annotations

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures import curves
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes the histograms and the table of checks."""
    population = (draft.source.evaluation or {}).get("population")
    if population:
        checks = population["checks"]
        head = ["discrepancy", "tokens", "first", "last", "held_out", "train", "p_value", "p_two_sided"]
        draft.files["population"] = [
            *draft.figure("population", lambda: curves.population(checks)),
            draft.table("population", head, [[check.get(k) for k in head] for check in checks]),
        ]


PAGE = Page(
    name="population",
    title="Generalisation",
    about="Held-out numbers against resamples of the training split.",
    source="`population`",
    needs="python -m clt_lightning test --run {run} --evaluate.population.images 2000",
    addresses=("population",),
    write=write,
)

"""How well each layer's MLP output is rebuilt."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures import maps
from clt_lightning.report.page import Page

TITLES = {
    "mse": "Mean squared error",
    "fvu": "Fraction of variance unexplained",
    "r2": "R²",
    "cosine": "Cosine",
    "l0": "Active features per token (L0)",
    "dead": "Share of dead features",
}
SHARES = ("fvu", "r2", "cosine")


def write(draft: Draft) -> None:
    """Writes a figure a metric, and the table of all."""
    tables = (draft.source.evaluation or {}).get("reconstruction")
    if not tables:
        return
    table = _table(draft, tables)
    # by metric: the links follow what is shown
    draft.files["reconstruction"] = {
        metric: [*draft.figure(f"reconstruction_{metric}", lambda m=metric: _strip(m, tables[m])), table]  # type: ignore[misc]
        for metric in tables
    }


def _strip(metric: str, sets: dict[str, Any]) -> Figure:
    rows = {tokens: [math.nan if v is None else v for v in t["layers"]] for tokens, t in sets.items()}
    title = TITLES.get(metric, metric)
    return maps.reconstruction_strip(rows, title, limit=1.0 if metric in SHARES else None)


def _table(draft: Draft, tables: dict[str, Any]) -> str:
    n = len(next(iter(tables["fvu"].values()))["layers"])
    rows = [
        [metric, tokens, *numbers["layers"], numbers["mean"]]
        for metric, sets in tables.items()
        for tokens, numbers in sets.items()
    ]
    return draft.table("reconstruction", ["metric", "tokens", *(f"layer_{i}" for i in range(n)), "mean"], rows)


PAGE = Page(
    name="reconstruction",
    title="Reconstruction",
    about="MSE, FVU, R², cosine, L0, dead share: layers x token sets.",
    source="`evaluation.<split>.reconstruction`",
    addresses=("reconstruction", "reconstruction?metric=l0"),
    write=write,
)

"""How well each layer's MLP output is rebuilt."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures import maps
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes the figure of the unexplained variance and the table of all metrics."""
    tables = (draft.source.evaluation or {}).get("reconstruction")
    if tables:
        draft.files["reconstruction"] = [
            *draft.figure("reconstruction", lambda: _strip(tables)),
            _table(draft, tables),
        ]


def _strip(tables: dict[str, Any]) -> Figure:
    rows = {tokens: [math.nan if v is None else v for v in t["layers"]] for tokens, t in tables["fvu"].items()}
    return maps.reconstruction_strip(rows, "Fraction of variance unexplained", limit=1.0)


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

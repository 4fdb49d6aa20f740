"""Whether the terms that score high are the ones that matter."""

from __future__ import annotations

from typing import Any

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures import curves
from clt_lightning.report.numbers import interval
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes a figure a setting, and one table."""
    entries = (draft.source.evaluation or {}).get("faithfulness") or []
    if entries:
        draft.files["faithfulness"] = [_table(draft, entries)]
    for number, entry in enumerate(entries):
        name = f"faithfulness_{entry['layer']:02d}_{entry['tokens']}_{entry['ranking']}_{entry['ablation']}"
        draft.files[f"faithfulness_{number}"] = draft.figure(name, lambda e=entry: curves.faithfulness(e))  # type: ignore[misc]


def _table(draft: Draft, entries: list[dict[str, Any]]) -> str:
    head = ["layer", "tokens", "ranking", "ablation", "order", "dropped", "top1", "top1_low", "top1_high", "kl"]
    rows = [
        [entry[k] for k in head[:4]] + [order, n, *interval(top1), kl]
        for entry in entries
        for order in ("top", "random", "bottom")
        for n, (top1, kl) in enumerate(zip(entry[f"drop_{order}"]["top1"], entry[f"drop_{order}"]["kl"]))
    ]
    rows += [
        [entry[k] for k in head[:4]] + ["skip and bias only", entry["terms"], *interval(rest["top1"]), rest["kl"]]
        for entry in entries
        if (rest := entry.get("rest"))
    ]
    return draft.table("faithfulness", head, rows)


PAGE = Page(
    name="faithfulness",
    title="Faithfulness",
    about="Terms taken out and kept, by score, at random, from the bottom.",
    source="`faithfulness`",
    addresses=("faithfulness", "faithfulness?n=1&metric=kl"),
    write=write,
)

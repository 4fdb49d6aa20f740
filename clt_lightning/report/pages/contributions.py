"""Which source layers write each target layer's reconstruction."""

from __future__ import annotations

import math

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures import maps
from clt_lightning.report.figures.style import TOKEN_NAMES
from clt_lightning.report.page import Page

_KINDS = ("uncentred", "centred", "std_over_classes")


def write(draft: Draft) -> None:
    """Writes every map as a figure and a table."""
    for tokens, scores in ((draft.source.evaluation or {}).get("contributions") or {}).items():
        for kind in _KINDS:
            if scores.get(kind) is None:
                continue
            name = f"contributions_{tokens}_{kind}"
            title = f"{kind.replace('_', ' ')}, {TOKEN_NAMES[tokens]}"
            matrix = [[math.nan if v is None else v for v in row] for row in scores[kind]]
            rows = [[i, *row] for i, row in enumerate(scores[kind])]
            head = ["source", *(f"target_{j}" for j in range(len(rows)))]
            figure = draft.figure(name, lambda m=matrix, t=title: maps.contribution_map(m, t))  # type: ignore[misc]
            draft.files[name] = [*figure, draft.table(name, head, rows)]


PAGE = Page(
    name="contributions",
    title="Contributions",
    about="Source x target layers, uncentred and centred, spread over classes.",
    source="`contributions`",
    addresses=("contributions", "contributions?tokens=all&cls=1"),
    write=write,
)

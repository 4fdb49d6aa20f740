"""Which source layers write each target layer's reconstruction."""

from __future__ import annotations

import math

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures import maps
from clt_lightning.report.figures.style import TOKEN_NAMES
from clt_lightning.report.page import Page

_KINDS = ("uncentred", "centred", "std_over_classes")
#: Of the whole reconstruction, with rows of linear skip and decoder bias; and of what the features add alone
_PARTS = {"whole_": "with skip and bias", "": "features alone"}


def write(draft: Draft) -> None:
    """Writes every map as a figure and a table."""
    for tokens, scores in ((draft.source.evaluation or {}).get("contributions") or {}).items():
        for part, what in _PARTS.items():
            for kind in _KINDS:
                values = scores.get(f"{part}{kind}")
                if values is None:
                    continue
                name = f"contributions_{tokens}_{part}{kind}"
                title = f"{kind.replace('_', ' ')}, {TOKEN_NAMES[tokens]},\n{what}"
                matrix = [[math.nan if v is None else v for v in row] for row in values]
                n = len(matrix[0])
                rows = [
                    [source if source < n else ("skip", "bias")[source - n], *row] for source, row in enumerate(values)
                ]
                head = ["source", *(f"target_{j}" for j in range(n))]
                figure = draft.figure(name, lambda m=matrix, t=title: maps.contribution_map(m, t))  # type: ignore[misc]
                draft.files[name] = [*figure, draft.table(name, head, rows)]


PAGE = Page(
    name="contributions",
    title="Contributions",
    about="Source x target layers, with linear skip and decoder bias; uncentred and centred, spread over classes.",
    source="`contributions`",
    addresses=("contributions", "contributions?tokens=all&cls=1", "contributions?part=features"),
    write=write,
)

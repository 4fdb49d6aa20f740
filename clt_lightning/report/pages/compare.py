"""Two or more runs side by side."""

from __future__ import annotations

from clt_lightning.report.comparison import partners
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes `runs`, `compare`, and for every other run and layer `match/<run>_<ll>`: partners of its features."""
    together = draft.together
    draft.data("runs", together.runs())
    draft.data("compare", together.comparison)
    for match in together.matches:
        if together.current in (match.a, match.b):
            other = match.b if together.current == match.a else match.a
            for layer in range(len(match.layers)):
                draft.data(f"match/{other}_{layer:02d}", partners(match, together.current, layer))
            for examples in _shown(draft, match.a, match.b):
                draft.show(examples)


def _shown(draft: Draft, a: int, b: int) -> list[list[int]]:
    """The strongest images of the features that the page names, where they are this run's."""
    features, comparison = draft.source.features, draft.together.comparison
    if features is None or comparison is None:
        return []
    entry = next(found for found in comparison["matches"] if (found["a"], found["b"]) == (a, b))
    sides = {"kept": a, "gone": a, "split": b, "new": b}
    mine = [
        (row[0], row[1])
        for kind, rows in entry.get("examples", {}).items()
        for row in rows
        if sides[kind] == draft.together.current
    ]
    strongest = {layer: features.layers[layer]["top_image"][:, 0] for layer in {layer for layer, _ in mine}}
    return [[int(strongest[layer][f])] for layer, f in mine if strongest[layer][f] >= 0]


PAGE = Page(
    name="compare",
    title="Compare",
    about="Several runs: L0, FVU, replaced accuracy, configs, and which features are the same.",
    source="the runs' `results.json`, `config.yaml`, `transcoder/`",
    needs="python -m clt_lightning report --run {run} --run ANOTHER",
    optional=True,
    addresses=("compare",),
    write=write,
)

"""How features change from layer to layer."""

from __future__ import annotations

from typing import Any

from clt_lightning.report.draft import Draft
from clt_lightning.report.evolution import RULES, evolution_files, read_evolution
from clt_lightning.report.page import Page


def write(draft: Draft) -> None:
    """Writes `evolution` and a file a layer: what `graph --evolution` measured; null without, or of other weights."""
    content = read_evolution(draft.source.run)
    step = draft.source.id.step
    if content is not None and None not in (step, content.get("step")) and content["step"] != step:
        draft.note(
            f"Features over the layers were measured at step {content['step']:,}, and the report is of step {step:,}: "
            f"`{PAGE.needs.format(run=draft.source.run)}` measures them again."
        )
        content = None
    if content is None:
        draft.data("evolution", None)
        return
    for name, value in evolution_files(content):
        draft.data(name, value)
    draft.files["evolution"] = [_table(draft, content)]


def _table(draft: Draft, content: dict[str, Any]) -> str:
    """Quantiles over features, one row a layer and number; of nearest features the layer is the later one."""
    rows = [[layer["block"], name, *values] for layer in content["layers"] for name, values in layer["spread"].items()]
    for pair in content["pairs"]:
        for rule in RULES:
            for key, name in (("spread", rule), ("chance", f"{rule}_by_chance"), ("share_spread", f"{rule}_share")):
                if pair[rule] is not None and key in pair[rule]:
                    rows.append([pair["to"], name, *pair[rule][key]])
    return draft.table("evolution", ["block", "number", *(f"q{100 * q:.0f}" for q in content["quantiles"])], rows)


PAGE = Page(
    name="evolution",
    title="Over the layers",
    about="How features change from layer to layer: which feed which, which look and act alike, where they fire, and "
    "how smooth their maps are.",
    source="`evolution/results.json`",
    needs="python -m clt_lightning graph --run {run} --evolution 200",
    optional=True,
    addresses=("evolution", "evolution?layer=2&feature=3&by=weights", "evolution?layer=1&order=smooth&by=profiles"),
    write=write,
)

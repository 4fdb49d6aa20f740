"""Results of debiasing and erasure as text."""

from __future__ import annotations

from clt_lightning.analysis.debias.erase import Erasure
from clt_lightning.analysis.debias.result import ArmResult, DebiasResult
from clt_lightning.analysis.intervals import Interval
from clt_lightning.core.table import Column, lay_out


def debias_lines(found: DebiasResult, width: int | None = None) -> list[str]:
    """All arms, one per row: worst group and overall, then groups and what changed, then collateral and AUC.

    Runs and groups are numbered, and named below the table, so that a row of any study has room in 80 characters.
    """
    arms = found.arms
    runs = list(dict.fromkeys(arm.run for arm in arms if arm.run))
    columns = [
        Column("n", [str(len(arm.chosen)) if arm.chosen or arm.sizes else "-" for arm in arms], 4, "accuracy %"),
        Column("worst group", [_told(arm.scores.worst) for arm in arms], 20, "accuracy %"),
        Column("overall", [_told(arm.scores.overall) for arm in arms], 20, "accuracy %"),
    ]
    for i in range(len(found.groups)):
        cells = [f"{100 * arm.scores.groups[i].value:.1f}" for arm in arms]
        columns.append(Column(str(i + 1), cells, 6, "groups %"))
    columns += [
        Column("mean", [f"{100 * arm.scores.balanced.value:.1f}" for arm in arms], 6, "groups %"),
        Column("right", [f"{arm.scores.to_right:,.0f}" for arm in arms], 7, "made, images"),
        Column("wrong", [f"{arm.scores.to_wrong:,.0f}" for arm in arms], 7, "made, images"),
    ]
    for name, before in found.collateral.items():
        cells = [f"{100 * before:.1f}" if arm.kind == "none" else _change(arm.collateral.get(name)) for arm in arms]
        columns.append(Column(name, cells, 20, "collateral, points"))
    if any(arm.auc is not None for arm in arms):
        columns.append(Column("AUC", ["-" if arm.auc is None else f"{arm.auc:.3f}" for arm in arms], 7))
    lines = lay_out(Column("edit", [_label(arm, runs) for arm in arms], 31, left=True), columns, width)
    lines.append("")
    if len(runs) > 1:
        lines += [f"run {i + 1}: {run}" for i, run in enumerate(runs)]
    told = zip(found.groups, found.counts)
    return lines + [f"group {i + 1}: {name}, {count:,} images" for i, (name, count) in enumerate(told)]


def _label(arm: ArmResult, runs: list[str]) -> str:
    of = f"{runs.index(arm.run) + 1}: " if arm.run and len(runs) > 1 else ""
    if arm.kind == "random":
        return f"{of}  as many random ones"
    return f"{of}{arm.name}, {arm.edit}" if arm.edit else arm.name


def erase_lines(found: Erasure, width: int | None = None) -> list[str]:
    """Accuracy by how many features are at their mean."""
    columns = [
        Column(part, [_told(point) for point in row], 20, f"{arm}, accuracy %")
        for arm, parts in found.accuracy.items()
        for part, row in parts.items()
    ]
    return lay_out(Column("features", [str(n) for n in found.sizes], 9), columns, width)


def _told(found: Interval) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _change(found: Interval | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"

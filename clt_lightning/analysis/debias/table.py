"""Results of debiasing and erasure as text."""

from __future__ import annotations

from clt_lightning.analysis.debias.erase import Erasure
from clt_lightning.analysis.debias.study import DebiasResult
from clt_lightning.analysis.intervals import Interval
from clt_lightning.core.table import Column, lay_out


def debias_lines(found: DebiasResult, width: int | None = None) -> list[str]:
    """All arms, one a row: groups, worst group, mean over groups, overall, what changed, collateral."""
    several = len({arm.run for arm in found.arms if arm.run}) > 1
    arms = found.arms
    names = [f"{arm.run}: {arm.name}" if several and arm.run else arm.name for arm in arms]
    columns = [
        Column("n", [str(len(arm.chosen)) if arm.chosen or arm.sizes else "-" for arm in arms], 5),
        Column("worst", [_told(arm.scores.worst) for arm in arms], 20, "accuracy %"),
        Column("balanced", [f"{100 * arm.scores.balanced.value:.1f}" for arm in arms], 9, "accuracy %"),
        Column("overall", [_told(arm.scores.overall) for arm in arms], 20, "accuracy %"),
        Column("to right", [f"{arm.scores.to_right:,.0f}" for arm in arms], 9, "images"),
        Column("to wrong", [f"{arm.scores.to_wrong:,.0f}" for arm in arms], 9, "images"),
    ]
    for i, name in enumerate(found.groups):
        cells = [f"{100 * arm.scores.groups[i].value:.1f}" for arm in arms]
        columns.append(Column(f"{name} ({found.counts[i]:,})", cells, 8, "groups %"))
    for name, before in found.collateral.items():
        cells = [f"{100 * before:.1f}" if arm.kind == "none" else _change(arm.collateral.get(name)) for arm in arms]
        columns.append(Column(name, cells, 20, "collateral, points"))
    if any(arm.auc is not None for arm in arms):
        columns.append(Column("AUC", ["-" if arm.auc is None else f"{arm.auc:.3f}" for arm in arms], 7, "cue found"))
    return lay_out(Column("edit", names, 28, left=True), columns, width)


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

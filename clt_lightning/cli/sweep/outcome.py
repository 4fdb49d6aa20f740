"""What a sweep has found: a table, a file and a picture of sparsity against error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, read_json, write_json
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width
from clt_lightning.metrics import TOKEN_SETS

#: Of `sweep.json`
SCHEMA = 1


@dataclass
class Outcome:
    """What has become of one member.

    Attributes:
        name: the member's.
        settings: in which it differs from the others, by dotted key.
        begun: whether it came to its first step.
        folder: the run's; None while it has none.
        numbers: of its last validation, by tag (`val/fvu/all`).
        error: what ended it before its end.
    """

    name: str
    settings: Mapping[str, Any]
    begun: bool = False
    folder: Path | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    error: BaseException | None = None

    def number(self, kind: str) -> float | None:
        """`fvu`, `l0` or `dead` over all tokens (or the token set that was measured first)."""
        found = [self.numbers[tag] for name in ("all", *TOKEN_SETS) if (tag := f"val/{kind}/{name}") in self.numbers]
        return found[0] if found and math.isfinite(found[0]) else None

    def cascade(self) -> tuple[float, float] | None:
        """Accuracy lost with most layers replaced, and the KL of the class probabilities."""
        original = self.numbers.get("val/zero_shot/original")
        tags = [tag for tag in self.numbers if tag.startswith("val/zero_shot/replaced/")]
        if original is None or not tags:
            return None
        widest = max(tags, key=_layers)
        kl = self.numbers.get(widest.replace("/replaced/", "/kl/"), math.nan)
        return original - self.numbers[widest], kl


def best(outcomes: Sequence[Outcome]) -> set[str]:
    """Names of those that no other beats in both L0 and FVU (the Pareto front)."""
    points = {o.name: (o.number("l0"), o.number("fvu")) for o in outcomes}
    known = {name: (l0, fvu) for name, (l0, fvu) in points.items() if l0 is not None and fvu is not None}
    return {
        name
        for name, (l0, fvu) in known.items()
        if not any((a <= l0 and b <= fvu) and (a < l0 or b < fvu) for a, b in known.values())
    }


def remember(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Gives runs that were finished before, in which nothing was left to do, what the earlier sweep has found.

    Args:
        folder: `<runs_dir>/<name>`.
        outcomes: changed in place.
    """
    earlier = _earlier(folder / "sweep.json")
    for outcome in outcomes:
        entry = earlier.get(outcome.name)
        if entry is not None and outcome.error is None and not outcome.begun:
            outcome.numbers = {tag: math.nan if value is None else value for tag, value in entry["numbers"].items()}
            outcome.folder = None if entry["folder"] is None else folder / entry["folder"]


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The table."""
    front = best(outcomes)

    def cells(kind: str, form: str) -> list[str]:
        return ["-" if (value := o.number(kind)) is None else form.format(value) for o in outcomes]

    losses = [o.cascade() for o in outcomes]
    columns = [
        Column("L0", cells("l0", "{:.1f}"), 7),
        Column("FVU", cells("fvu", "{:.4f}"), 8),
        Column("dead", cells("dead", "{:.1%}"), 7),
        Column("points lost", ["-" if loss is None else f"{100 * loss[0]:.2f}" for loss in losses], 12),
        Column("KL", ["-" if loss is None or math.isnan(loss[1]) else f"{loss[1]:.3f}" for loss in losses], 7),
        Column("front", ["*" if o.name in front else "" for o in outcomes], 7),
    ]
    table = lay_out(Column("run", [o.name for o in outcomes], left=True), columns, line_width())
    return [*table, "front: no other run has both fewer active features (L0) and a smaller error (FVU)."]


def write(folder: Path, outcomes: Sequence[Outcome], source: str, forwards: tuple[int, int]) -> list[Path]:
    """Writes `sweep.json`, which keeps the members of earlier sweeps of this name, and `sweep.svg` and `sweep.png`.

    Args:
        folder: `<runs_dir>/<name>`.
        outcomes: of all members.
        source: the sweep's file.
        forwards: of the backbone: asked for, run.

    Returns:
        What was written.

    Raises:
        UserError: the disk refuses it, or a `sweep.json` that is none lies there.
    """
    path = folder / "sweep.json"
    runs = dict(_earlier(path))
    front = best(outcomes)
    for outcome in outcomes:
        loss = outcome.cascade()
        runs[outcome.name] = {
            "settings": dict(outcome.settings),
            "folder": None if outcome.folder is None else outcome.folder.relative_to(folder).as_posix(),
            "state": "finished" if outcome.error is None else type(outcome.error).__name__,
            "l0": outcome.number("l0"),
            "fvu": outcome.number("fvu"),
            "dead": outcome.number("dead"),
            "points_lost": None if loss is None else 100 * loss[0],
            "kl": None if loss is None else loss[1],
            "front": outcome.name in front,
            "numbers": outcome.numbers,
        }
    asked, run = forwards
    content = {"schema": SCHEMA, "sweep": source, "forwards": {"asked": asked, "run": run}, "runs": runs}
    write_json(path, content)
    return [path, *_draw(folder, outcomes, front)]


def _earlier(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("runs"), dict):
        raise UserError(f"{path} is no sweep's file: move it away, or give the sweep another --name")
    return dict(found["runs"])


def _draw(folder: Path, outcomes: Sequence[Outcome], front: set[str]) -> list[Path]:
    from clt_lightning.report.figures.style import BLUE, GREY, house_style, new_figure

    points = sorted(
        (l0, fvu, o.name)
        for o in outcomes
        if (l0 := o.number("l0")) is not None and (fvu := o.number("fvu")) is not None
    )
    if not points:
        return []
    paths = [folder / "sweep.svg", folder / "sweep.png"]
    with house_style(), disk_errors(folder):
        figure = new_figure()
        axes = figure.subplots()
        for l0, fvu, name in points:
            axes.plot(l0, fvu, "o", color=BLUE if name in front else GREY, markersize=5)
            axes.annotate(name, (l0, fvu), xytext=(4, 4), textcoords="offset points", fontsize=7)
        best_ones = [(l0, fvu) for l0, fvu, name in points if name in front]
        axes.plot(*zip(*best_ones), "-", color=BLUE, linewidth=1.2, label="no other run beats these in both")
        axes.set(xlabel="L0: active features per token", ylabel="FVU: share of variance not explained")
        axes.set_title(f"{len(points)} runs on one forward of the backbone")
        axes.margins(0.12)
        axes.legend(fontsize=8)
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1])
    return paths


def _layers(tag: str) -> tuple[int, bool]:
    window, _, tokens = tag.removeprefix("val/zero_shot/replaced/").partition("/")
    first, _, last = window.partition("-")
    return int(last) - int(first), tokens == "all"

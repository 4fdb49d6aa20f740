"""The numbers of an evaluation as CSV files, and the figures drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from clt_lightning.report.figures import curves, maps
from clt_lightning.report.figures.style import TOKEN_NAMES, save
from clt_lightning.report.folder import ReportFolder

Files = dict[str, Any]
Evaluation = dict[str, Any]
_PLACE = ("kind", "first", "last", "tokens", "n")
_KINDS = ("uncentred", "centred", "std_over_classes")
_TASKS = ("zero_shot", "multilabel", "retrieval")


def count_figures(evaluation: Evaluation) -> int:
    """How many figures `write_tables_and_figures` draws."""
    maps = [scores.get(kind) for scores in (evaluation.get("contributions") or {}).values() for kind in _KINDS]
    once = [evaluation.get(part) for part in ("reconstruction", "population")]
    zero_shot = 2 if evaluation.get("zero_shot") else 0
    return zero_shot + len(evaluation.get("faithfulness") or []) + sum(part is not None for part in maps + once)


def write_tables_and_figures(folder: ReportFolder, evaluation: Evaluation, progress: Callable[[], None]) -> Files:
    """Writes every table and figure of a split's evaluation.

    Args:
        folder: the report.
        evaluation: `evaluation.<split>` of results.json (docs/results-schema.md).
        progress: called after each figure.

    Returns:
        The files of each figure on the pages, by the figure's name.
    """

    def figure(name: str, draw: Callable[[], Figure | None]) -> list[str]:
        drawn = draw()
        files = [] if drawn is None else save(folder, name, drawn)
        progress()
        return files

    files: Files = {}
    tables = evaluation.get("reconstruction")
    if tables:
        files["reconstruction"] = [*figure("reconstruction", lambda: _strip(tables)), _reconstruction(folder, tables)]
    files["arms"] = {task: [_arms(folder, task, evaluation[task]["arms"])] for task in _TASKS if evaluation.get(task)}
    if evaluation.get("zero_shot"):
        arms = evaluation["zero_shot"]["arms"]
        table = files["arms"]["zero_shot"]
        files["cascade"] = figure("cascade", lambda: curves.replacement(arms, "top1", False, "top-1")) + table
        files["single"] = figure("single_layers", lambda: curves.replacement(arms, "top1", True, "top-1")) + table
    for tokens, scores in (evaluation.get("contributions") or {}).items():
        files |= _contributions(folder, tokens, scores, figure)
    entries = evaluation.get("faithfulness") or []
    if entries:
        files["faithfulness"] = [_faithfulness(folder, entries)]
    for number, entry in enumerate(entries):
        name = f"faithfulness_{entry['layer']:02d}_{entry['tokens']}_{entry['ranking']}_{entry['ablation']}"
        files[f"faithfulness_{number}"] = figure(name, lambda e=entry: curves.faithfulness(e))  # type: ignore[misc]
    if evaluation.get("population"):
        checks = evaluation["population"]["checks"]
        files["population"] = [*figure("population", lambda: curves.population(checks)), _population(folder, checks)]
    return files


def _strip(tables: dict[str, Any]) -> Figure:
    rows = {tokens: [float("nan") if v is None else v for v in t["layers"]] for tokens, t in tables["fvu"].items()}
    return maps.reconstruction_strip(rows, "Fraction of variance unexplained", limit=1.0)


def _reconstruction(folder: ReportFolder, tables: dict[str, Any]) -> str:
    n = len(next(iter(tables["fvu"].values()))["layers"])
    rows = [
        [metric, tokens, *numbers["layers"], numbers["mean"]]
        for metric, sets in tables.items()
        for tokens, numbers in sets.items()
    ]
    return folder.table("reconstruction", ["metric", "tokens", *(f"layer_{i}" for i in range(n)), "mean"], rows)


def _interval(value: Any) -> list[Any]:
    return [None] * 3 if value is None else [value["value"], value["low"], value["high"]]


def _arms(folder: ReportFolder, task: str, arms: list[dict[str, Any]]) -> str:
    metrics = list(dict.fromkeys(k for arm in arms for k, v in arm.items() if isinstance(v, dict) and "low" in v))
    head = [*_PLACE, *(name for m in metrics for name in (m, f"{m}_low", f"{m}_high"))]
    rows = [[arm[k] for k in _PLACE] + [part for m in metrics for part in _interval(arm.get(m))] for arm in arms]
    return folder.table(task, head, rows)


def _contributions(
    folder: ReportFolder, tokens: str, scores: dict[str, Any], figure: Callable[[str, Callable[[], Figure]], list[str]]
) -> Files:
    files: Files = {}
    for kind in _KINDS:
        if scores.get(kind) is None:
            continue
        name = f"contributions_{tokens}_{kind}"
        title = f"{kind.replace('_', ' ')}, {TOKEN_NAMES[tokens]}"
        matrix = [[float("nan") if v is None else v for v in row] for row in scores[kind]]
        rows = [[i, *row] for i, row in enumerate(scores[kind])]
        table = folder.table(name, ["source", *(f"target_{j}" for j in range(len(rows)))], rows)
        files[name] = [*figure(name, lambda m=matrix, t=title: maps.contribution_map(m, t)), table]  # type: ignore[misc]
    return files


def _faithfulness(folder: ReportFolder, entries: list[dict[str, Any]]) -> str:
    head = ["layer", "tokens", "ranking", "ablation", "order", "dropped", "top1", "top1_low", "top1_high", "kl"]
    rows = [
        [entry[k] for k in head[:4]] + [order, n, *_interval(top1), kl]
        for entry in entries
        for order in ("top", "random", "bottom")
        for n, (top1, kl) in enumerate(zip(entry[f"drop_{order}"]["top1"], entry[f"drop_{order}"]["kl"]))
    ]
    return folder.table("faithfulness", head, rows)


def _population(folder: ReportFolder, checks: list[dict[str, Any]]) -> str:
    head = ["discrepancy", "tokens", "first", "last", "held_out", "train", "p_value"]
    return folder.table("population", head, [[check[k] for k in head] for check in checks])

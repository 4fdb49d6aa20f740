"""`paper-table`: what finished runs have measured, beside what was published."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clt_lightning.cli.options import add_output, file_option
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_text
from clt_lightning.core.paths import expand
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `paper-table`."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        help="runs, e.g. runs/clt-vit-b32-cifar100-topk (its newest finished version); default: all in --runs_dir",
    )
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--split", default="test", help="split whose evaluation is read (default: test)")
    add_output(parser, "write the table there as Markdown, with 95 %% intervals")


def run(args: argparse.Namespace) -> None:
    """Prints the table.

    Raises:
        UserError: no run, or none that is evaluated and one of the paper's settings.
    """
    from clt_lightning.analysis import published
    from clt_lightning.runs.folder import find_run, shown

    output = file_option(args.output)
    root = Path(expand(args.runs_dir, "--runs_dir"))
    folders = [find_run(path).path for path in args.runs] or _all_runs(root)
    if not folders:
        raise UserError(f"{shown(root)} holds no finished run: docs/reproduction.md has the command of each setting")
    rows: list[tuple[published.Cell, str, dict[str, Any]]] = []
    for folder in folders:
        results = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
        cell, note = published.cell_of(results)
        evaluation = (results.get("evaluation") or {}).get(args.split)
        if cell is None or evaluation is None:
            print(f"left out: {shown(folder)} ({note if cell is None else f'`test --run {shown(folder)}` first'})")
            continue
        rows.append((cell, f"{shown(folder)}{f' ({note})' if note else ''}", evaluation))
    if not rows:
        raise UserError(
            "none of these runs is an evaluated setting of the paper: docs/reproduction.md has the commands"
        )
    order = published.all_cells()
    rows.sort(key=lambda row: order.index(row[0]))
    labels, table = [], []
    for number, (cell, name, evaluation) in enumerate(rows):
        labels.append(f"{cell}: {name}")
        table.append(published.measured(evaluation, intervals=False))
        if number + 1 == len(rows) or rows[number + 1][0] != cell:
            labels.append(f"{cell}: published")
            table.append(cell.published())
    print("\n".join(_lines(labels, table, (*published.COLUMNS, *published.TERM_COLUMNS))))
    lacking = len(order) - len({cell for cell, _, _ in rows})
    told = [*published.CAVEATS, f"{lacking} of the {len(order)} settings have no run here yet."]
    print("\n" + "\n".join(told))
    if output is not None:
        exact = [published.measured(evaluation) for _, _, evaluation in rows]
        for (cell, name, _), numbers in zip(rows, exact):
            table[labels.index(f"{cell}: {name}")] = numbers
        write_text(output, _markdown(labels, table, (*published.COLUMNS, *published.TERM_COLUMNS), told))
        print(f"wrote {output}")


def _all_runs(root: Path) -> list[Path]:
    from clt_lightning.runs.folder import RunFolder

    found = sorted(path.parent for path in root.rglob("version_*/results.json")) if root.is_dir() else []
    return [folder for folder in found if RunFolder(folder).finished]


def _used(table: Sequence[dict[str, str]], columns: Sequence[str]) -> list[str]:
    return [column for column in columns if any(column in row for row in table)]


def _lines(labels: Sequence[str], table: Sequence[dict[str, str]], columns: Sequence[str]) -> list[str]:
    shown = [Column(name, [row.get(name, "-") for row in table], 9) for name in _used(table, columns)]
    return lay_out(Column("setting", labels, left=True), shown, line_width())


def _markdown(
    labels: Sequence[str], table: Sequence[dict[str, str]], columns: Sequence[str], told: Sequence[str]
) -> str:
    used = _used(table, columns)
    lines = [f"| setting | {' | '.join(used)} |", "|---" * (len(used) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(row.get(name, '-') for name in used)} |" for label, row in zip(labels, table)]
    return "\n".join([*lines, "", *(f"{text}\n" for text in told)])

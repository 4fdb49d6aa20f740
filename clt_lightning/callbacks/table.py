"""A table on the terminal at the end of every validation and test."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from clt_lightning.callbacks.base import weights_at
from clt_lightning.callbacks.zero_shot import ZeroShot
from clt_lightning.metrics import TOKEN_SETS

_COLUMNS = {"fvu": ("FVU", 8), "cosine": ("cosine", 8), "l0": ("L0", 8), "dead": ("dead", 7)}  # title, width


def _cell(kind: str, value: float | None) -> str:
    if value is None:
        return "-"
    if kind == "dead":
        return f"{100 * value:.1f}%"
    if kind == "l0":
        return f"{value:.1f}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1e}"


def reconstruction_lines(metrics: Mapping[str, float]) -> list[str]:
    """Lines of the reconstruction table.

    Args:
        metrics: numbers by tag without the stage: `fvu/all`, `fvu/all/layer_00`, ...

    Returns:
        One line a layer and one for the mean; empty if there is nothing to show.
    """
    sets = [name for name in TOKEN_SETS if f"fvu/{name}" in metrics]
    layers = sorted({int(m[1]) for tag in metrics if (m := re.search(r"/layer_(\d+)$", tag))})
    if not sets or not layers:
        return []
    width = sum(cell for _, cell in _COLUMNS.values())
    lines = [
        " " * 5 + "".join(f" {f' {name} tokens ':-^{width - 2}} " for name in sets),
        "layer" + "".join(f"{title:>{cell}}" for _ in sets for title, cell in _COLUMNS.values()),
    ]
    for label, suffix in [*((f"{layer:02d}", f"/layer_{layer:02d}") for layer in layers), ("mean", "")]:
        cells = (
            f"{_cell(kind, metrics.get(f'{kind}/{name}{suffix}')):>{cell}}"
            for name in sets
            for kind, (_, cell) in _COLUMNS.items()
        )
        lines.append(f"{label:>5}" + "".join(cells))
    return [line.rstrip() for line in lines]


def zero_shot_lines(metrics: Mapping[str, float]) -> list[str]:
    """Lines of the zero-shot table: accuracies in percent, and the gap to the original in points.

    Args:
        metrics: numbers by tag without the stage: `zero_shot/original`, `zero_shot/replaced/0-3/all`, ...

    Returns:
        One line a model; empty without `zero_shot/original`.
    """
    original = metrics.get("zero_shot/original")
    if original is None:
        return []
    rows: list[tuple[str, float, float | None]] = [("original", original, None)]
    for tag, value in metrics.items():
        if m := re.fullmatch(r"zero_shot/replaced/(\d+-\d+)/(\w+)", tag):
            rows.append((f"layers {m[1]} replaced at {m[2]} tokens", value, metrics.get(f"zero_shot/kl/{m[1]}/{m[2]}")))
    if "zero_shot/mean_ablated" in metrics:
        rows.append(("all MLPs at their mean output", metrics["zero_shot/mean_ablated"], None))
    width = 2 + max(len(row[0]) for row in rows)
    lines = [f"{'zero-shot':<{width}}{'top-1':>9}{'gap':>15}{'KL':>10}"]
    for index, (label, value, kl) in enumerate(rows):
        gap = f"{100 * (value - original):+.2f} points" if index else ""
        lines.append(f"{label:<{width}}{100 * value:>7.2f} %{gap:>15}{'' if kl is None else f'{kl:.4f}':>10}".rstrip())
    return lines


def doubt_lines(trainer: pl.Trainer) -> list[str]:
    """Why the zero-shot accuracies say little, as lines under their table; empty where nothing speaks against them."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    texts = [text for callback in callbacks if isinstance(callback, ZeroShot) for text in callback.doubts]
    return [line for text in texts for line in textwrap.wrap(f"note: {text}", 79, subsequent_indent="  ")]


class Table(pl.Callback):
    """Prints the numbers of `Reconstruction` and `ZeroShot` as a table, at most 98 columns wide, at the end of every
    validation and test. Plain text: it reads the same in a log file."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._print(trainer, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._print(trainer, "test")

    def _print(self, trainer: pl.Trainer, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        prefix = f"{stage}/"
        metrics = {
            tag.removeprefix(prefix): float(value)
            for tag, value in trainer.callback_metrics.items()
            if tag.startswith(prefix)
        }
        parts = [part for part in (reconstruction_lines(metrics), zero_shot_lines(metrics)) if part]
        if not parts:
            return
        title = f"{'validation' if stage == 'val' else 'test'}, step {weights_at(trainer)[0]:,}"
        lines = ["", title, *parts[0]]
        for part in parts[1:]:
            lines += ["", *part]
        if zero_shot_lines(metrics):
            lines += doubt_lines(trainer)
        trainer.print("\n".join([*lines, ""]), flush=True)

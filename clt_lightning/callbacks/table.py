"""A table on the terminal at the end of every validation and test."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from clt_lightning.callbacks.base import weights_at
from clt_lightning.callbacks.zero_shot import ZeroShot
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width
from clt_lightning.metrics import TOKEN_SETS

#: title, characters with the space in front
_COLUMNS = {"fvu": ("FVU", 8), "cosine": ("cosine", 8), "l0": ("L0", 8), "dead": ("dead", 7)}

#: Rows of sparse attention in the second table, by tag
_ATTENTION = {"attention": "every attention replaced", "with_attention": "every attention and all layers replaced"}

#: Under the first table
LEGEND = (
    "FVU: share of the variance that is not explained, 0 is perfect. L0: active",
    "features per token. dead: features that never fired in this pass. gap: points",
    "of accuracy. KL: of the class probabilities from the original's. who makes",
    "it: shares of the centred reconstruction and of the margin, which attention",
    "and the embedding make as well; a skip names nothing.",
)


def _cell(kind: str, value: float | None) -> str:
    if value is None:
        return "-"
    if kind == "dead":
        return f"{100 * value:.1f}%"
    if kind == "l0":
        return f"{value:.1f}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1e}"


def reconstruction_lines(metrics: Mapping[str, float], width: int | None = None, heading: str = "layer") -> list[str]:
    """Lines of the reconstruction table.

    Args:
        metrics: numbers by tag without the stage: `fvu/all`, `fvu/all/layer_00`, ...
        width: characters that a line may have; None: any number.
        heading: of the first column.

    Returns:
        One line a layer and one for the mean; empty if there is nothing to show.
    """
    sets = [name for name in TOKEN_SETS if f"fvu/{name}" in metrics]
    layers = sorted({int(m[1]) for tag in metrics if (m := re.match(r"fvu/.*/layer_(\d+)$", tag))})
    if not sets or not layers:
        return []
    rows = {**{f"{layer:02d}": f"/layer_{layer:02d}" for layer in layers}, "mean": ""}
    shown = {kind: column for kind, column in _COLUMNS.items() if f"{kind}/{sets[0]}" in metrics}
    columns = [
        Column(
            title, [_cell(kind, metrics.get(f"{kind}/{name}{row}")) for row in rows.values()], least, f"{name} tokens"
        )
        for name in sets
        for kind, (title, least) in shown.items()
    ]
    return lay_out(Column(heading, list(rows)), columns, width)


def attention_lines(metrics: Mapping[str, float], width: int | None = None) -> list[str]:
    """The same of sparse attention, whose tags begin with `attention/`; empty without."""
    own = {tag.removeprefix("attention/"): v for tag, v in metrics.items() if tag.startswith("attention/")}
    return reconstruction_lines(own, width, "attention")


def zero_shot_lines(metrics: Mapping[str, float], width: int | None = None) -> list[str]:
    """Lines of the zero-shot table: accuracies in percent, and the gap to the original in points.

    Args:
        metrics: numbers by tag without the stage: `zero_shot/original`, `zero_shot/replaced/0-3/all`, ...
        width: characters that a line may have; None: any number.

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
    for tag, label in _ATTENTION.items():
        if f"zero_shot/{tag}" in metrics:
            rows.append((label, metrics[f"zero_shot/{tag}"], metrics.get(f"zero_shot/kl/{tag}")))
    if "zero_shot/mean_ablated" in metrics:
        rows.append(("all MLPs at their mean output", metrics["zero_shot/mean_ablated"], None))
    gaps = ["", *(f"{100 * (value - original):+.2f} points" for _, value, _ in rows[1:])]
    return lay_out(
        Column("zero-shot", [f"{label}  " for label, _, _ in rows], left=True),
        [
            Column("top-1", [f"{100 * value:.2f} %" for _, value, _ in rows], 9),
            Column("gap", gaps, 15),
            Column("KL", ["" if kl is None else f"{kl:.4f}" for _, _, kl in rows], 10),
        ],
        width,
    )


def share_lines(metrics: Mapping[str, float], width: int | None = None) -> list[str]:
    """Lines of the table of who makes the centred reconstruction, the sparse features or the linear skip, and what they
    add to the margin over the runner-up (attention and the rest make what is missing there).

    Args:
        metrics: numbers by tag without the stage: `share/features`, with a skip `share/features/all` and by layer, and
            `share/margin/features` and `.../skip`.
        width: characters that a line may have; None: any number.

    Returns:
        One line a token set, and with a skip one per layer, for the set `all`; empty if it was not measured.
    """
    if "share/features" not in metrics:
        return []
    rows = {f"{name} tokens": metrics.get(f"share/features/{name}") for name in TOKEN_SETS}
    rows |= {
        f"all tokens, layer {m[1]}": value
        for tag, value in metrics.items()
        if (m := re.fullmatch(r"share/features/all/layer_(\d+)", tag))
    }
    found = {label: value for label, value in rows.items() if value is not None}
    found = found or {"all tokens": metrics["share/features"]}
    shares = {f"reconstruction, {label}": (value, 1 - value) for label, value in found.items()}
    if "share/margin/features" in metrics:
        shares["margin over the runner-up"] = metrics["share/margin/features"], metrics["share/margin/skip"]
    return lay_out(
        Column("who makes it", [f"{label}  " for label in shares], left=True),
        [
            Column("features", [f"{100 * features:.1f} %" for features, _ in shares.values()], 11),
            Column("skip", [f"{100 * skip:.1f} %" for _, skip in shares.values()], 11),
        ],
        width,
    )


def doubt_lines(trainer: pl.Trainer) -> list[str]:
    """Why the zero-shot accuracies say little, as lines under their table; empty where nothing speaks against them."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    texts = [text for callback in callbacks if isinstance(callback, ZeroShot) for text in callback.doubts]
    return [line for text in texts for line in textwrap.wrap(f"note: {text}", 79, subsequent_indent="  ")]


class Table(pl.Callback):
    """Prints the numbers of `Reconstruction` and `ZeroShot` as tables at the end of every validation and test: plain
    text, as wide as the terminal at most (80 characters in a log; `COLUMNS` sets another width).
    """

    def __init__(self) -> None:
        self._explained = False

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
        width = line_width()
        tables = (reconstruction_lines, attention_lines, share_lines, zero_shot_lines)
        parts = [lines for table in tables if (lines := table(metrics, width))]
        if not parts:
            return
        title = f"{'validation' if stage == 'val' else 'test'}, step {weights_at(trainer)[0]:,}"
        lines = ["", title, *parts[0]]
        for part in parts[1:]:
            lines += ["", *part]
        if zero_shot_lines(metrics):
            lines += doubt_lines(trainer)
        if not self._explained:
            self._explained = True
            lines += ["", *LEGEND]
        trainer.print("\n".join([*lines, ""]), flush=True)

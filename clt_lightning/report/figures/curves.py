"""Curves with intervals: replacement windows, faithfulness; histograms of the population check; the scatter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from clt_lightning.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    TOKEN_NAMES,
    VERMILION,
    house_style,
    new_figure,
)

Arms = Sequence[dict[str, Any]]
Interval = dict[str, Any]
KINDS = {
    "replaced": ("replaced (cascaded)", BLUE, "o-"),
    "true_x": ("fed with the true x", GREEN, "s--"),
    "mean_ablated": ("mean-ablated MLPs", VERMILION, "^-"),
    "zero_ablated": ("zero-ablated MLPs", PURPLE, "v:"),
    "random": ("random features", GREY, "x:"),
}


def _curve(
    axes: Axes,
    x: Sequence[float],
    points: Sequence[Interval],
    label: str,
    color: str,
    form: str,
    scale: float = 100,
) -> None:
    values = [np.nan if p["value"] is None else scale * p["value"] for p in points]
    axes.plot(x, values, form, color=color, label=label, markersize=4, linewidth=1.5)
    if all(p.get("low") is not None for p in points):
        low, high = ([scale * p[side] for p in points] for side in ("low", "high"))
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        if len(points) == 1:  # a band has no width there
            axes.vlines(x, low, high, color=color, linewidth=1, alpha=0.8)


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend below all panels; an arm may be drawn in some of them only."""
    entries = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3, fontsize=8)


def replacement_arms(arms: Arms, metric: str, single: bool) -> list[dict[str, Any]]:
    """The arms that `replacement` draws, whose arguments it has."""
    last = max((a["last"] for a in arms if a["last"] is not None), default=None)

    def fits(a: dict[str, Any]) -> bool:
        inside = a["first"] is not None and (a["first"] == a["last"] if single else a["last"] == last)
        return inside and a.get(metric) is not None and a[metric]["value"] is not None

    return [a for a in arms if fits(a)]


def replacement(arms: Arms, metric: str, single: bool, name: str) -> Figure:
    """Accuracy over windows first -> last layer, or over single layers, one panel a token set.

    Args:
        arms: `evaluation.<split>.zero_shot.arms`, some of which fit (`replacement_arms`).
        metric: which of their intervals: shares, or `kl` in nats.
        single: single layers in the place of windows that end at the last layer.
        name: of the metric, for the axis.
    """
    chosen = replacement_arms(arms, metric, single)
    last = max(a["last"] for a in chosen)
    sets = [name for name in TOKEN_NAMES if any(a["tokens"] == name for a in chosen)]
    original = next((a for a in arms if a["kind"] == "original"), None)
    scale = 1 if metric == "kl" else 100
    with house_style():
        figure = new_figure(0.6 + 3.2 * len(sets), 3.3)
        panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
        for axes, tokens in zip(panels, sets):
            for kind, (label, color, form) in KINDS.items():
                mine = sorted(
                    (a for a in chosen if (a["kind"], a["tokens"]) == (kind, tokens)), key=lambda a: a["first"]
                )
                if mine:
                    _curve(axes, [a["first"] for a in mine], [a[metric] for a in mine], label, color, form, scale)
            if original is not None and original.get(metric) and original[metric]["value"] is not None:
                level = scale * original[metric]["value"]
                axes.axhline(level, color=GREY, linestyle="--", linewidth=1, label="original")
            axes.set(title=TOKEN_NAMES[tokens], xlabel="layer" if single else f"first layer replaced (to {last})")
            axes.set_xticks(sorted({a["first"] for a in chosen}))
        panels[0].set_ylabel(f"{name} ({'nats' if metric == 'kl' else '%'})")
        if metric == "kl" and any(a[metric]["value"] > 0 for a in chosen):
            panels[0].set_yscale("log")  # shared: it spans decades
        _legend(figure, panels)
    return figure


def faithfulness(entry: dict[str, Any]) -> Figure:
    """Terms taken out, and terms kept: top ones, random ones, bottom ones.

    Args:
        entry: one of `evaluation.<split>.faithfulness`.
    """
    arms = (
        ("top", "bottom", "top terms", VERMILION, "o-"),
        ("random", "random", f"random ({entry['draws']} draws)", GREY, "s--"),
        ("bottom", "top", "bottom terms", BLUE, "^-"),
    )
    x = list(range(entry["terms"] + 1))
    with house_style():
        figure = new_figure(7.4, 3.2)
        out, kept = figure.subplots(1, 2, sharey=True)
        for dropped, complement, label, color, form in arms:
            _curve(out, x, entry[f"drop_{dropped}"]["top1"], label, color, form)
            # keeping the top n is dropping the bottom terms - n
            _curve(kept, x, entry[f"drop_{complement}"]["top1"][::-1], label, color, form)
        for axes, label in ((out, "terms taken out"), (kept, "terms kept")):
            axes.axhline(100 * entry["baseline"]["top1"]["value"], color="black", linestyle="--", linewidth=0.8)
            if entry.get("rest") and entry["rest"]["top1"]["value"] is not None:
                rest = 100 * entry["rest"]["top1"]["value"]
                axes.axhline(rest, color=PURPLE, linestyle=":", linewidth=1.2, label="skip and bias only")
            axes.set(xlabel=label, xticks=x)
        out.set_ylabel("top-1 (%)")
        _legend(figure, [out])
        figure.suptitle(
            f"layer {entry['layer']}, {TOKEN_NAMES[entry['tokens']]}, ranked by {entry['ranking']}, "
            f"{entry['ablation']} ablation",
            fontsize=10,
        )
    return figure


def population(checks: Sequence[dict[str, Any]]) -> Figure:
    """Each discrepancy's distribution over training resamples, with the held-out value.

    Args:
        checks: `evaluation.<split>.population.checks`, at least one.
    """
    columns = min(3, len(checks))
    rows = -(-len(checks) // columns)
    with house_style():
        figure = new_figure(3.1 * columns, 2.2 * rows)
        for axes, check in zip(figure.subplots(rows, columns, squeeze=False).ravel(), checks):
            axes.hist(check["resampled"], bins=30, color="#b9bcc0")
            axes.axvline(check["held_out"], color=VERMILION, linewidth=2)
            window = "" if check["first"] is None else f", {check['first']}→{check['last']}"
            tokens = "" if check["tokens"] is None else f", {TOKEN_NAMES[check['tokens']]}"
            axes.set_title(f"{check['discrepancy']}{tokens}{window}\np = {check['p_value']:.3g}", fontsize=8)
            axes.set_yticks([])
    return figure


def feature_scatter(frequency: ArrayLike, mean_code: ArrayLike) -> Figure:
    """Firing frequency (log) and mean code of every feature that fired, coloured by layer.

    Args:
        frequency: `(L, F)`.
        mean_code: `(L, F)`.
    """
    x, y = np.asarray(frequency), np.asarray(mean_code)
    layer = np.broadcast_to(np.arange(x.shape[0])[:, None], x.shape)
    alive = x > 0
    with house_style():
        figure = new_figure(5.6, 3.6)
        axes = figure.subplots()
        points = axes.scatter(x[alive], y[alive], c=layer[alive], s=3, cmap="viridis", linewidths=0, rasterized=True)
        axes.set(xscale="log", xlabel="share of tokens on which it is active", ylabel="mean code")
        figure.colorbar(points, ax=axes, label="layer")
    return figure

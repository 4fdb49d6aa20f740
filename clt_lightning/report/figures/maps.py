"""Heat maps: layers x token sets, layers x layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from clt_lightning.report.figures.style import TOKEN_NAMES, house_style, new_figure

_DARK = 0.6


def _write_values(axes: Axes, values: NDArray[np.float64], limit: float, form: str, size: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if abs(value) > _DARK * limit else "black"
            text = format(value, form).replace("0.", ".") if abs(value) < 1 else format(value, form)
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def reconstruction_strip(tables: Mapping[str, ArrayLike], title: str, limit: float | None = None) -> Figure:
    """Layers along x, token sets along y.

    Args:
        tables: token set -> `(L,)` numbers.
        title: what the numbers are.
        limit: where the colour scale ends; None: the largest number.
    """
    values = np.array([np.asarray(row, dtype=np.float64) for row in tables.values()])
    top = limit or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    with house_style():
        figure = new_figure(max(4.0, 0.55 * values.shape[1] + 1.6), 0.42 * len(values) + 1.15)
        axes = figure.subplots()
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto")
        axes.grid(False)
        axes.set(title=title, xlabel="layer", xticks=range(values.shape[1]))
        axes.set_yticks(range(len(values)), [TOKEN_NAMES.get(name, name) for name in tables])
        _write_values(axes, values, top, ".3f", 7.5)
        figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    return figure


def contribution_map(scores: ArrayLike, title: str, limit: float | None = None) -> Figure:
    """Source layers along y, target layers along x.

    Args:
        scores: `(L, L)` [source][target], below the diagonal of targets nothing is drawn; or `(L + 2, L)`, with rows of
            the linear skip and of the decoder bias, of which one that is 0 throughout is left out.
        title: which scores.
        limit: where the colour scale ends on both sides of zero; None: the largest |score|.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = values.shape[1]
    names = [str(layer) for layer in range(n)] + ["skip", "bias"][: len(values) - n]
    sources = np.minimum(np.arange(len(values)), np.where(np.arange(len(values)) < n, n, 0))
    values = np.where(sources[:, None] <= np.arange(n)[None, :], values, np.nan)
    there = [row for row in range(len(values)) if row < n or np.nan_to_num(values[row]).any()]
    values, names = values[there], [names[row] for row in there]
    top = limit or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    with house_style():
        side = max(3.2, 0.42 * n + 1.0)
        figure = new_figure(side + 0.7, side + 0.42 * (len(values) - n))
        axes = figure.subplots()
        image = axes.imshow(values, cmap="RdBu", vmin=-top, vmax=top)
        axes.grid(False)
        axes.set(title=title, xlabel="target layer", ylabel="source layer", xticks=range(n))
        axes.set_yticks(range(len(values)), names)
        if len(values) > n:
            axes.axhline(n - 0.5, color="black", linewidth=0.8)
        _write_values(axes, values, top, ".2f", 7.0 if n > 6 else 9.0)
        figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    return figure

"""One look for all figures, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clt_lightning.core.tokens import TOKEN_NAMES as TOKEN_NAMES
from clt_lightning.report.folder import ReportFolder

# Okabe and Ito: told apart under the common colour-vision deficiencies
BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#5d6066"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, "#e69f00", GREY)

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e0",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "clt_lightning",
    "figure.dpi": 100,
    "savefig.dpi": 200,
}


@contextmanager
def house_style() -> Iterator[None]:
    """While active, new figures have the house's look; the user's own settings come back afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def new_figure(width: float = 6.0, height: float = 3.4) -> Figure:
    """An empty figure (inches) without pyplot: nothing is kept open, and any thread may draw."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(folder: ReportFolder, name: str, figure: Figure) -> list[str]:
    """Writes `figures/<name>.svg` and `.png`; the same numbers give the same bytes.

    Returns:
        Their addresses in the report.
    """
    with house_style():
        figure.savefig(folder.file(f"figures/{name}.svg"), metadata={"Date": None})
        figure.set_layout_engine("none")  # what was laid out once stays there
        figure.savefig(folder.file(f"figures/{name}.png"))
    return [f"figures/{name}.svg", f"figures/{name}.png"]

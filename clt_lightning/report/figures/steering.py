"""What an edit has changed: classes that gain and lose, and images that are named otherwise, before and after."""

from __future__ import annotations

import base64
import io
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from clt_lightning.analysis.steering import Edit
from clt_lightning.report.figures.style import BLUE, GREEN, GREY, VERMILION, house_style, new_figure

#: What came of an image
WORDS = {"gained": "now right", "lost": "now wrong", "other": "another class"}
_COLOURS = {"gained": GREEN, "lost": VERMILION, "other": GREY}
#: Classes each way, images of a way, images in a row, and letters of a class's name
_CLASSES, _IMAGES, _COLUMNS, _LETTERS = 5, 14, 7, 21
#: Inches: the figure's width, its margin, a bar, what the bars' axis takes, a cell, the picture in it, a heading
_WIDTH, _MARGIN, _BAR, _AXIS, _CELL, _PICTURE, _HEADING = 8.6, 0.15, 0.24, 0.5, 1.18, 0.84, 0.3
_LINE = 0.12


def classes_of(record: dict[str, Any], most: int = _CLASSES) -> list[int]:
    """The classes that gain most and those that lose most, from the largest gain to the largest loss."""
    change = np.array(record["mean_change"])
    order = np.argsort(-change, kind="stable")
    gain = [int(c) for c in order[:most] if change[c] > 0]
    loss = [int(c) for c in order[::-1][:most] if change[c] < 0]
    return gain + loss[::-1]


def steering_figure(record: dict[str, Any]) -> Figure:
    """Bars with their 95 % intervals over the images, and below them pictures, each way by itself.

    Args:
        record: of `report.saved_edits.steering_record`.
    """
    classes = classes_of(record)
    parts = [(way, record["pictures"][way][:_IMAGES]) for way in WORDS if record["pictures"][way]]
    rows = [(way, images[i : i + _COLUMNS]) for way, images in parts for i in range(0, len(images), _COLUMNS)]
    title = _title(record)
    bars = _BAR * max(len(classes), 1)
    top = _MARGIN + 0.2 * (1 + title.count("\n")) + 0.05
    height = top + bars + _AXIS + len(parts) * _HEADING + len(rows) * (_CELL + 0.08) + _MARGIN
    with house_style():
        figure = new_figure(_WIDTH, height)
        figure.set_layout_engine("none")

        def place(left: float, at: float, width: float, tall: float) -> Axes:
            found: Axes = figure.add_axes((left / _WIDTH, 1 - (at + tall) / height, width / _WIDTH, tall / height))
            return found

        figure.text(_MARGIN / _WIDTH, 1 - _MARGIN / height, title, va="top", fontsize=9)
        _bars(place(2.0, top, _WIDTH - 2.0 - 2 * _MARGIN, bars), record, classes)
        at = top + bars + _AXIS
        for number, (way, images) in enumerate(rows):
            if number == 0 or rows[number - 1][0] != way:
                n = record["flips"][way]
                said = f"{WORDS[way]}: {n:,} image{'' if n == 1 else 's'}"
                figure.text(
                    _MARGIN / _WIDTH, 1 - (at + 0.05) / height, said, va="top", weight="bold", color=_COLOURS[way]
                )
                at += _HEADING
            for column, image in enumerate(images):
                axes = place(_MARGIN + column * _CELL, at, _PICTURE, _PICTURE)
                _image(axes, record, image, _COLOURS[way])
            at += _CELL + 0.08
    return figure


def _title(record: dict[str, Any]) -> str:
    named = record["edits"][:6]
    said = "; ".join(str(Edit(**edit)) for edit in named)
    more = len(record["edits"]) - len(named)
    said += f" and {more} more" if more else ""
    top1 = record["top1"]
    accuracy = "" if top1 is None else f"; top-1 {top1['before']:.1%}, then {top1['after']:.1%}"
    whole = f"{said}: {record['changed']:,} of {record['images']:,} images named otherwise{accuracy}"
    return "\n".join(textwrap.wrap(whole, 110))


def _bars(axes: Axes, record: dict[str, Any], classes: list[int]) -> None:
    change = 100 * np.array([record["mean_change"][c] for c in classes])
    ends = 100 * np.array([record["mean_change_interval"][c] for c in classes]).reshape(-1, 2)
    axes.barh(
        range(len(classes)),
        change,
        color=[BLUE if value > 0 else VERMILION for value in change],
        xerr=np.abs(ends.T - change) if len(classes) else None,
        error_kw={"lw": 1},
        height=0.66,
    )
    axes.set_yticks(range(len(classes)), [_short(record["classnames"][c], 24) for c in classes])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel("change of the class's mean probability, points, 95 % interval over images")


def _image(axes: Axes, record: dict[str, Any], image: dict[str, Any], colour: str) -> None:
    data = base64.b64decode(image["picture"].partition(",")[2])
    axes.imshow(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    axes.set_axis_off()
    chances = {number: (before, after) for number, before, after in image["classes"]}
    for line, (number, ink) in enumerate(((image["was"], GREY), (image["now"], colour))):
        chance = chances[number][line]
        name = _short(record["classnames"][number], _LETTERS)
        at = -(0.05 + line * _LINE) / _PICTURE
        said = f"{'→ ' if line else ''}{name} {chance:.0%}"
        axes.text(0, at, said, transform=axes.transAxes, va="top", fontsize=6.5, color=ink)


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"

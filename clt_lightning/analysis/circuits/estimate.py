"""What a graph will cost, before it is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clt_lightning.core.people import count, duration


@dataclass(frozen=True)
class Estimate:
    """What a graph costs beyond the backbone and the transcoder.

    Attributes:
        active: active features at positions that can reach the target.
        rows: rows (backwards) that are made.
        bytes: main memory at the peak.
        seconds: time; None where it was not measured.
    """

    active: int
    rows: int
    bytes: int
    seconds: float | None = None

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", about {duration(self.seconds)}"
        return f"{count(self.active)} active features, {count(self.rows)} rows, about {self.bytes / 1e6:,.0f} MB{time}"


def memory(rows: int, columns: int, kept: int, batch: int, positions: int, width: int, layers: int, item: int) -> int:
    """Bytes at the peak of making a graph.

    Args:
        rows: rows that are made.
        columns: columns of a row while all active features count.
        kept: columns of the graph in the end.
        batch: rows in one backward.
        positions: tokens of an image.
        width: d_model.
        layers: L.
        item: bytes of a number.
    """
    stored = rows * columns * item
    at_work = 8 * batch * positions * width * item + 2 * batch * columns * item
    image = 12 * layers * positions * width * item
    # two indices and a weight an edge, twice while groups are joined; about two of five pairs are edges, since these go
    # up the layers
    edges = 0.4 * rows * kept * (16 + item) * 2.2
    return int(stored + image + max(at_work, edges))


def seconds_of(layers: torch.Tensor, timed: dict[int, float], batch: int) -> float:
    """Seconds of all backwards, from those of a few.

    A backward from layer l crosses l + 1 attentions and contracts with all that writes below: its time is quadratic in
    l + 1, and none where nothing is below.

    Args:
        layers: `(rows,)` the layer that each row begins at.
        timed: seconds of a batch that begins at a layer.
        batch: rows of such a batch.
    """
    depth = layers.double() + 1
    if len(timed) == 1:
        ((layer, seconds),) = timed.items()
        return float((seconds * (depth / (layer + 1)) / batch).sum())
    (a, at_a), (b, at_b) = sorted(timed.items())[0], sorted(timed.items())[-1]
    x, y = a + 1.0, b + 1.0
    square = (at_b / y - at_a / x) / (y - x)
    linear = at_a / x - square * x
    return float(((linear * depth + square * depth**2).clamp(min=0) / batch).sum())

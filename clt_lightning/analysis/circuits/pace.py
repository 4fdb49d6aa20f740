"""How long backwards take, from two that were timed step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from clt_lightning.analysis.circuits.linear import Step


@dataclass(frozen=True)
class Timed:
    """A backward that was timed; all of its rows begin at the deepest layer.

    Attributes:
        rows: how many.
        steps: from the top down: a row passes the step if it begins at this layer or above; the step's seconds. The
            first one is where rows are read, and the same for rows that begin elsewhere.
    """

    rows: int
    steps: Sequence[tuple[int, float]]


class Stopwatch:
    """Times the steps of one backward.

    Args:
        clock: tells the seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.steps: list[tuple[int, float]] = []
        self._last = clock()

    def passed(self, step: Step | None) -> None:
        """A step is done; None: what comes after all steps."""
        now = self.clock()
        begin = 0 if step is None or step.place == "input" else step.layer + 1
        self.steps.append((begin, now - self._last))
        self._last = now


class Pace:
    """Seconds of backwards: each step costs so much, and so much for each row that passes it.

    A row costs nothing above the layer that it begins at; decoder rows are fetched once for any number of rows.

    Args:
        small: a backward of few rows.
        large: one of many.
    """

    def __init__(self, small: Timed, large: Timed) -> None:
        self.steps: list[tuple[int, float, float]] = []
        more = large.rows - small.rows
        for (begin, few), (_, many) in zip(small.steps, large.steps, strict=True):
            # noise must not make a row, or a step, cost less than nothing
            each = min(max((many - few) / more, 0.0) if more else 0.0, many / large.rows)
            self.steps.append((begin, many - each * large.rows, each))

    def seconds(self, begun: Tensor) -> float:
        """Of one backward; `(layers,)` how many rows begin at each layer, one at least."""
        passing: list[int] = begun.flip(0).cumsum(0).flip(0).tolist()
        layers: list[int] = begun.nonzero().flatten().tolist()
        (_, base, each), *others = self.steps
        reading = sum(base + each * passing[layer] for layer in layers)
        return reading + sum(base + each * passing[begin] for begin, base, each in others if begin <= layers[-1])

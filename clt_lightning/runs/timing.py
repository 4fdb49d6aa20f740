"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler

#: The parts of a step, in its order; what is left of it is `other` (logging, callbacks, checkpoints)
PARTS = ("data", "clip", "transcoder", "optimizer")


class StepClock:
    """Adds up the seconds of named parts; off until started.

    On a GPU a part's time is its time there, by events that are read when somebody asks: no step waits for them.
    """

    def __init__(self) -> None:
        self._on = False
        self._cuda = False
        self._open: dict[str, Any] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []
        self._latest: dict[str, float] = {}

    def start(self, device: torch.device) -> None:
        """Begins to measure, from nothing."""
        self.stop()
        self._on, self._cuda = True, device.type == "cuda"

    def stop(self) -> None:
        """Measures no longer, and forgets."""
        self._on = False
        self._open.clear()
        self._seconds.clear()
        self._events.clear()
        self._latest.clear()

    def latest(self, part: str) -> float:
        """Seconds that a part took the last time, by the host's clock; 0 if that is not known."""
        return self._latest.get(part, 0.0)

    def begin(self, part: str, *, host: bool = False) -> None:
        """A part begins.

        Args:
            part: its name.
            host: whether the host's clock counts, on a GPU, too (for what happens on the host).
        """
        if self._on:
            self._open[part] = self._now(host)

    def end(self, part: str, *, host: bool = False) -> None:
        """A part ends; nothing happens if it has not begun."""
        begun = self._open.pop(part, None)
        if begun is None:
            return
        if self._cuda and not host:
            self._events.append((part, begun, self._now(host)))
        else:
            self._latest[part] = self._now(host) - begun
            self._seconds[part] += self._latest[part]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is a part."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call. To be called when a GPU is idle (synchronised)."""
        for part, begun, ended in self._events:
            self._seconds[part] += begun.elapsed_time(ended) / 1000
        self._events.clear()
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def _now(self, host: bool) -> Any:
        if self._cuda and not host:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()


class DataWait(Profiler):
    """Stands before the trainer's profiler and tells a clock when a step waits for its batch.

    Args:
        inner: the trainer's profiler, which hears everything as before.
        clock: gets the part `data`.
    """

    _ACTION = "train_dataloader_next"

    def __init__(self, inner: Profiler, clock: StepClock) -> None:
        super().__init__()
        self.inner, self.clock = inner, clock

    def start(self, action_name: str) -> None:
        if action_name.endswith(self._ACTION):
            self.clock.begin("data", host=True)
        self.inner.start(action_name)

    def stop(self, action_name: str) -> None:
        self.inner.stop(action_name)
        if action_name.endswith(self._ACTION):
            self.clock.end("data", host=True)

    def summary(self) -> str:
        return self.inner.summary()

    def describe(self) -> None:
        self.inner.describe()

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.inner.setup(*args, **kwargs)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.inner.teardown(*args, **kwargs)

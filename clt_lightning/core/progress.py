"""How far long work is: one live line on a terminal, elsewhere a line every few per cent; from process 0 only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from clt_lightning.core.people import count, duration
from clt_lightning.core.terminal import first_process, is_live, line_width, live_line, spoken

T = TypeVar("T")

#: What is under way, the innermost last; the last one that is shown live has the live line
_under_way: list[Progress] = []


class Progress:
    """Counts a piece of work and says how far it is. Use it in a `with` block, or `close` it.

    On a terminal one line at the bottom is rewritten, and messages go above it. In a log or a pipe a line is printed
    every twentieth of the work, and at least every `longest` seconds (sooner at the start), but never two within
    `shortest` seconds. Work inside other work takes the line for as long as it lasts.

    Args:
        what: what is done, e.g. `thumbnails`.
        total: how much there is to do; None: nobody knows.
        unit: of what, in the plural, e.g. `images`.
        done: how much of it is done already.
        show: False counts in silence.
        stream: `stdout` or `stderr`, where lines go; None: where the command speaks.
        sums_up: whether it ends with a line that says how long it took; None: if it took `shortest` seconds or more.

    Attributes:
        live: whether it has the live line, and not lines of a log.
    """

    share = 0.05
    shortest = 5.0
    longest = 600.0
    _first = 10.0
    _redraw = 0.1

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        show: bool = True,
        stream: str | None = None,
        sums_up: bool | None = None,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.note = ""
        self._stream, self._sums_up = stream, sums_up
        self._shows = show and first_process()
        self.live = self._shows and is_live()
        self._began = self._said = time.monotonic()
        self._said_done = self._begun_at = done
        self._said_any = False
        self._marks = [(self._began, done)]
        self._closed = not self._shows
        if self._shows:
            _under_way.append(self)
        if self.live:
            self._draw()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def update(self, n: int = 1, note: str | None = None) -> None:
        """Says that `n` more are done."""
        self.to(self.done + n, note)

    def to(self, done: int, note: str | None = None) -> None:
        """Says how many are done.

        Args:
            done: of the whole.
            note: what else is to be shown, e.g. `shard 3`; None leaves it as it is.
        """
        self.done = done
        self.note = self.note if note is None else note
        if self._closed:
            return
        now = time.monotonic()
        if now - self._marks[-1][0] >= 0.5:
            self._marks.append((now, done))
            if len(self._marks) > 256:
                self._marks = self._marks[::2]
        if not self.is_due():
            return
        self._said = now
        if self.live:
            self._draw()
        else:
            self._said_done, self._said_any = done, True
            self._print(", ".join(self.parts()))

    def restart(self, done: int) -> None:
        """Counts time from here on: what was done before took its time for other reasons."""
        self.done = self._begun_at = done
        self._began = time.monotonic()
        self._marks = [(self._began, done)]

    def close(self, failed: bool = False) -> None:
        """Ends it; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        _under_way.remove(self)
        if self.live:
            above = next((p for p in reversed(_under_way) if p.live), None)
            if above is None:
                live_line.show("")
            else:
                above._draw()
        seconds = time.monotonic() - self._began
        long = self._said_any or seconds >= self.shortest
        if not failed and (long if self._sums_up is None else self._sums_up):
            unit = f" {self.unit}" if self.unit else ""
            self._print(f"{self.what}: {self.done - self._begun_at:,}{unit} in {duration(seconds)}")

    # -- what is said ------------------------------------------------------------------------------------------------
    def parts(self) -> list[str]:
        """What a line says, the most important first; a narrow terminal shows the first ones."""
        unit = f" {self.unit}" if self.unit else ""
        head = f"{self.what}: {self.done:,}" + (f" of {self.total:,}" if self.total else "") + unit
        parts = [head + (f" ({self.percent()})" if self.total else "")]
        if self.note:
            parts.append(self.note)
        rate, left = self.rate(), self.left()
        if rate >= 1:
            parts.append(f"{count(rate)} a second")
        if left is not None and self.done < (self.total or 0):
            parts.append(f"about {duration(left)} left")
        return parts

    def percent(self) -> str:
        """The share that is done; with a decimal where that moves."""
        assert self.total
        share = min(1.0, self.done / self.total)
        return f"{share:.1%}" if self.total >= 1000 and share < 1 else f"{share:.0%}"

    def rate(self) -> float:
        """How many a second, over the later half of what was done: work that gets slower is not told as it was."""
        now, half = time.monotonic(), (self._begun_at + self.done) / 2
        since, done = next((mark for mark in reversed(self._marks) if mark[1] <= half), self._marks[0])
        return (self.done - done) / (now - since) if self.done > done and now > since else 0.0

    def left(self) -> float | None:
        """Seconds until the end at this rate; None if nobody knows."""
        rate = self.rate()
        return (self.total - self.done) / rate if self.total and rate > 0 else None

    def is_due(self) -> bool:
        """Whether the next number that it is told will be shown; for callers to whom the number costs something."""
        if self._closed:
            return False
        gap = time.monotonic() - self._said
        if self.live:
            return gap >= self._redraw or self.done == self.total
        if gap < self.shortest:
            return False
        step = self.share * (self.total or 0)  # at 5, 10, 15 per cent, whatever was said between them
        moved = bool(step) and int(self.done / step + 1e-9) > int(self._said_done / step + 1e-9)
        return moved or gap >= min(self.longest, max(self._first, self._said - self._began))

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the reader of the pipe is gone, the disk of the log full: work goes on
            print(text, file=getattr(sys, self._stream or spoken()), flush=True)

    def _draw(self) -> None:
        if next((p for p in reversed(_under_way) if p.live), None) is not self:
            return
        width = line_width() - 1
        line, *more = self.parts()
        if len(line) > width and line.startswith(self.what):  # the numbers are what moves
            line = f"{self.what[: max(0, len(self.what) - (len(line) - width) - 2)]}..{line[len(self.what) :]}"
        for part in more:
            if len(line) + 2 + len(part) <= width:
                line += f", {part}"
        room = min(width - len(line) - 3, 30)
        if self.total and room >= 10:
            full = round(room * min(1.0, self.done / self.total))
            line += f" [{'#' * full}{'.' * (room - full)}]"
        with suppress(OSError, ValueError):  # the terminal is gone
            live_line.show(line)


def track(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    unit: str = "",
    *,
    show: bool = True,
    stream: str | None = None,
    sums_up: bool | None = None,
) -> Iterator[T]:
    """Goes through items and says how far it is, as `Progress`.

    Args:
        items: one after another; counted when the next one is asked for.
        what: what is done with them.
        total: how many there are; None takes their length, if they have one.
        unit: what they are, in the plural.
        show: False says nothing.
        stream: as of `Progress`.
        sums_up: as of `Progress`.
    """
    if total is None:
        try:
            total = len(items)  # type: ignore[arg-type]
        except TypeError:
            total = None
    with Progress(what, total, unit, show=show, stream=stream, sums_up=sums_up) as progress:
        for item in items:
            yield item
            progress.update()

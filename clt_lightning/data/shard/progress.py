"""How far a long piece of work is, on standard error."""

from __future__ import annotations

import sys
import time


class Progress:
    """One line on a terminal; elsewhere a line every ten seconds, and one for each shard.

    Args:
        what: what is done.
        total: how many there are; None: nobody knows.
        unit: of what.
    """

    def __init__(self, what: str, total: int | None, unit: str = "samples") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._live = sys.stderr.isatty()
        self._begin = self._last = time.monotonic()
        self._shown = False

    def show(self, done: int, *, shard: int | None = None, force: bool = False) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._live else 10) and not (force and not self._live):
            return
        self._last, self._shown = now, True
        rate = done / max(now - self._begin, 1e-9)
        line = f"{self._what}: {done:,} {self._unit}"
        if self._total is not None:
            left = (self._total - done) / rate if rate else 0.0
            where = "" if shard is None else f", shard {shard}"
            line = f"{self._what}: {done:,} of {self._total:,} {self._unit}{where}"
            line += f", {rate:,.0f} a second, {left:.0f} s left"
        self._print(line, end="" if self._live else "\n")

    def close(self) -> None:
        """Says that it is done, and how long it took; not of a count without total that was over in a moment."""
        seconds = time.monotonic() - self._begin
        if self._total is not None:
            self._print(f"{self._what}: {self._total:,} {self._unit} done in {seconds:.1f} s")
        elif self._shown:
            self._print(f"{self._what}: done in {seconds:.1f} s")

    def _print(self, line: str, end: str = "\n") -> None:
        print(f"\r{line}\033[K" if self._live else line, end=end, file=sys.stderr, flush=True)

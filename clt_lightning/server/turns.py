"""Whose turn it is at the model: what a person waits for comes before what runs in the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """One at a time; whoever asks for `now` is next, before all that wait for `later`.

    Hooks in the backbone make it serve one caller at a time. Background work asks for a turn for every batch, so that a
    slider waits for one batch at most.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._waiting = 0

    @contextmanager
    def now(self) -> Iterator[None]:
        """A turn as soon as the one at work is done."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._busy)
            finally:
                self._waiting -= 1
            self._busy = True
        yield from self._turn()

    @contextmanager
    def later(self) -> Iterator[None]:
        """A turn when nobody waits for `now`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy and not self._waiting)
            self._busy = True
        yield from self._turn()

    def _turn(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

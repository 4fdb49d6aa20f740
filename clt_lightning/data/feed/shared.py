"""One reading of the data for several loaders that would read the same."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from typing import Any


class SharedPackets:
    """Hands what one loader reads and decodes to all consumers that would have read the same.

    Consumers that are in step hold a packet at most; one that falls behind makes the others' packets wait in memory.

    Args:
        consumers: how many there are.
    """

    def __init__(self, consumers: int) -> None:
        self.consumers = consumers
        self._copies: dict[bytes, list[Iterator[Any]]] = {}

    def of(self, batches: Any, read: Callable[[], Iterable[Any]]) -> Iterable[Any]:
        """The packets of `batches`.

        Args:
            batches: what is read; two of the same contents read the same.
            read: reads it.
        """
        key = _contents(batches)
        if key is None:
            return read()
        copies = self._copies.get(key)
        if not copies:
            copies = self._copies[key] = list(tee(read(), self.consumers))
        mine = copies.pop()
        if not copies:
            del self._copies[key]
        return mine

    def without_one(self) -> None:
        """A consumer has ended: what was kept for it is let go."""
        self.consumers -= 1
        for key in list(self._copies):
            self._copies[key].pop()
            if not self._copies[key]:
                del self._copies[key]


def _contents(value: Any) -> bytes | None:
    """Bytes that are equal for values of equal contents; None for what cannot be compared so."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    pickler.fast = True  # without notes on which parts are one object: they differ where contents do not
    try:
        pickler.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError):  # a transform of the user's, say
        return None
    return file.getvalue()

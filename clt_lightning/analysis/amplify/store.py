"""Rows that come batch after batch, without gaps in memory, and passes over them without a copy of all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Images that are made room for where nobody says how many come
_FIRST = 1024
#: Numbers of a table that are worked on at once
NUMBERS = 1 << 20


class Store:
    """Rows by name, each name's in one tensor that has its full size from the start.

    Kept one by one, small tensors lie between large ones that are let go, and the gaps are nobody's: a pass over
    thousands of images would take several times what it keeps.

    Args:
        total: how many rows come; None: unknown, and a tensor grows by half of itself.
    """

    def __init__(self, total: int | None) -> None:
        self._room = max(1, _FIRST if total is None else total)
        self._rows: dict[str, Tensor] = {}
        self._filled: dict[str, int] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Some more rows `(n, ...)`."""
        start = self._filled.get(name, 0)
        end = self._filled[name] = start + len(rows)
        held = self._rows.get(name)
        if held is None or end > len(held):
            room = max(end, self._room if held is None else len(held) + len(held) // 2)
            wider = torch.empty((room, *rows.shape[1:]), dtype=rows.dtype)
            if held is not None:
                wider[:start] = held[:start]
            held = self._rows[name] = wider
        held[start:end] = rows

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def take(self, name: str) -> Tensor:
        """All rows of a name, which is then forgotten here."""
        return self._rows.pop(name)[: self._filled.pop(name)]


def parts(*tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tables `(images, ...)` of equally many images, some images at a time."""
    step = max(1, NUMBERS // max(1, max(table[:1].numel() for table in tables)))
    yield from zip(*(table.split(step) for table in tables))


def mean_of(rows: Tensor) -> Tensor:
    """Over the first dimension, in fp64, without a copy of all."""
    total = torch.zeros(rows.shape[1:], dtype=torch.float64)
    for (part,) in parts(rows):
        total += part.double().sum(0)
    return total / len(rows)

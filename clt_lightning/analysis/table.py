"""One row per image: what a split's numbers, their intervals and their population check are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from clt_lightning.core.errors import UserError

#: In the place of a rank and of a class: the arm was not run on this image
NOT_RUN = -2


def gather_rows(rows: Any) -> list[Any]:
    """What every process has, in order of rank, on all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return [rows]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, rows)
    return gathered


class ImageTable:
    """Columns of numbers, one row per image, filled batch by batch and merged over processes.

    After `gathered` rows are sorted by key: the order in which images came, batch size and number of processes leave no
    trace in what is computed from them.
    """

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._columns: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Sequence[str], columns: Mapping[str, Tensor | np.ndarray]) -> None:
        """Append a batch.

        Args:
            keys: one name an image.
            columns: arrays `(images, ...)`; the same names in every batch.
        """
        assert not self._columns or set(columns) == set(self._columns), "a batch with other columns"
        self._keys.extend(keys)
        for name, values in columns.items():
            array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            assert len(array) == len(keys), f"{name}: {len(array)} rows for {len(keys)} images"
            self._columns.setdefault(name, []).append(array)

    def gathered(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Keys and columns of all processes, sorted by key; every process must call this.

        Raises:
            UserError: a key twice: images were read twice, or keys are not unique.
        """
        own = (self._keys, {name: np.concatenate(parts) for name, parts in self._columns.items()})
        parts = [part for part in gather_rows(own) if part[0]]
        if not parts:
            return np.array([], dtype=str), {}
        keys = np.array([key for part in parts for key in part[0]])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise UserError(
                f"sample key {str(keys[twice[0]])!r} comes twice in the split: every image must be read once, by one "
                "process, and keys must be unique"
            )
        return keys, {name: np.concatenate([part[1][name] for part in parts])[order] for name in parts[0][1]}

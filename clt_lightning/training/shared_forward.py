"""One forward of the frozen backbone for several modules that learn from the same batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass
class _Kept:
    tensors: tuple[Tensor | None, ...]
    found: Any


class SharedForward:
    """Remembers the last forward of each kind; who asks for the same one again gets what it gave.

    The same means: of tensors that are equal in every element. So a module gets what it would have computed, whatever
    the others do; members that are not in step pay for forwards of their own.

    Attributes:
        asked: forwards that were asked for.
        run: those that were run.
    """

    def __init__(self) -> None:
        self.asked = self.run = 0
        self._kept: dict[Hashable, _Kept] = {}

    def __call__(self, kind: Hashable, tensors: tuple[Tensor | None, ...], forward: Callable[[], T]) -> T:
        """What `forward` gives.

        Args:
            kind: what is asked of the backbone.
            tensors: what the forward depends on beside that.
            forward: runs it.
        """
        device = next((t.device.type for t in tensors if t is not None), "cpu")
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (kind, autocast, torch.is_inference_mode_enabled())
        self.asked += 1
        kept = self._kept.get(key)
        if kept is not None and all(map(_equal, kept.tensors, tensors)):
            found: T = kept.found
            return found
        self._kept.pop(key, None)  # its memory is free for the next one
        self.run += 1
        made = forward()
        self._kept[key] = _Kept(tensors, made)
        return made

    def clear(self) -> None:
        """Forgets what it holds."""
        self._kept.clear()


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))

"""Memory that is kept between steps."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor


class GradientBuffers:
    """Where weight gradients (and pre-activations) are written on a CPU: the same memory in every step.

    Fresh memory is paid for with page faults, up to twice the backward pass for gradients of hundreds of megabytes.
    A buffer is handed out again only when no tensor uses it any more: gradients that are kept, accumulated or returned
    stay untouched. CUDA's allocator keeps memory by itself, and gets fresh tensors.
    """

    def __init__(self) -> None:
        self._storages: dict[Hashable, torch.UntypedStorage] = {}

    def take(self, key: Hashable, like: Tensor) -> Tensor:
        """A tensor of the shape, type and strides of `like`, of any content.

        Args:
            key: what the buffer is for; one is kept for each key.
            like: a tensor without gaps in memory.
        """
        if like.device.type != "cpu":
            return torch.empty_like(like)
        storage = self._storages.get(key)
        if storage is None or storage.nbytes() != like.numel() * like.element_size() or not _is_free(storage):
            fresh = torch.empty_like(like)
            self._storages[key] = fresh.untyped_storage()
            return fresh
        return torch.empty(0, dtype=like.dtype).set_(storage, 0, like.shape, like.stride())

    def room(self, key: Hashable, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A contiguous tensor of any content, of the type of `like`, for use within a step; its memory only grows."""
        if like.device.type != "cpu":
            return like.new_empty(shape)
        storage = self._storages.get(key)
        if storage is None or storage.nbytes() < math.prod(shape) * like.element_size() or not _is_free(storage):
            fresh = like.new_empty(shape)
            self._storages[key] = fresh.untyped_storage()
            return fresh
        strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        return torch.empty(0, dtype=like.dtype).set_(storage, 0, shape, strides)

    def clear(self) -> None:
        """Gives the memory back."""
        self._storages.clear()

    # copies and pickles of a transcoder start with buffers of their own
    def __deepcopy__(self, memo: dict[int, Any]) -> GradientBuffers:
        return GradientBuffers()

    def __reduce__(self) -> tuple[type[GradientBuffers], tuple[()]]:
        return GradientBuffers, ()


def _is_free(storage: torch.UntypedStorage) -> bool:
    """Whether nobody but us holds a storage. What torch cannot tell counts as held."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return count is not None and count(storage._cdata) == 1

"""The largest entries of every row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clt_lightning.transcoder.order import kth_largest_of_rows, places_from

#: The bits of minus infinity in bf16
_MINUS_INFINITY = 0xFF80

#: What numpy orders each type by. The bits of a bf16 that is not negative are in its order, all others are below
_KEYS = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.int16}


def top_indices(pre: Tensor, k: int) -> Tensor:
    """Indices of the k largest entries of every row, in no order: `torch.topk`, faster on CPU for wide rows.

    Columns are dealt into groups of 16. None of a row's k largest entries is below the k-th largest of the groups'
    maxima, and hardly more than k entries reach it: these are searched for, and the few too many are taken away.

    Args:
        pre: `(rows, F)`.
        k: at most F.

    Returns:
        `(rows, k)` int64.
    """
    rows, width = pre.shape
    groups = width // 16
    if pre.device.type == "cpu" and not width % 16 and groups >= 4 * k and rows and pre.dtype in _KEYS:
        keys = pre.view(_KEYS[pre.dtype])
        found = None if _has_low_nan(keys) else _searched(keys, k)
        if found is not None:
            return found
    return torch.topk(pre, k, dim=1, sorted=False).indices


def _searched(keys: Tensor, k: int) -> Tensor | None:
    """The same of keys that numpy knows; None where far more than k entries reach the bound, or fewer."""
    rows, width = keys.shape
    # group g holds columns g, g + groups, ...: the maximum runs along memory
    maxima = keys.reshape(rows, 16, width // 16).amax(1)
    least = kth_largest_of_rows(maxima, k)
    if not keys.is_floating_point():
        least.clamp_min_(0)
    places = places_from(keys, least)
    tokens = torch.div(places, width, rounding_mode="floor")
    counts = torch.bincount(tokens, minlength=rows)
    least_count, most = (int(found) for found in (counts.numpy().min(), counts.numpy().max()))
    if least_count < k or most > 4 * k:
        return None
    if most == k:
        return (places - tokens * width).view(rows, k)
    spare = tokens * most - (torch.cumsum(counts, 0) - counts).index_select(0, tokens)
    at = torch.arange(len(places)).add_(spare)
    values = keys.new_full((rows * most,), _lowest(keys)).index_copy_(0, at, keys.reshape(-1).index_select(0, places))
    best = torch.topk(values.view(rows, most), k, dim=1, sorted=False).indices
    columns = places.new_zeros(rows * most).index_copy_(0, at, places - tokens * width)
    return columns.view(rows, most).gather(1, best)


def _has_low_nan(keys: Tensor) -> bool:
    """Whether bits of a bf16 are those of a NaN with a minus: of all its keys should be the largest, and is not."""
    return not keys.is_floating_point() and int(keys.numpy().view(np.uint16).max()) > _MINUS_INFINITY


def _lowest(keys: Tensor) -> float:
    return -torch.inf if keys.is_floating_point() else -1

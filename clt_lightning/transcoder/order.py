"""Where a mask is true, how small numbers sort, which value is the k-th: on a CPU numpy is much faster than torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def true_places(mask: Tensor) -> Tensor:
    """`(n,)` int64: the places of a bool tensor, as if flattened, where it is true; in ascending order.

    On a GPU the host waits for their number.
    """
    if mask.device.type == "cpu":
        return torch.from_numpy(_places(mask.detach().numpy()))
    return mask.flatten().nonzero().view(-1)


def places_above(table: Tensor, cut: Tensor) -> Tensor:
    """`true_places(table > cut)`, exactly, whatever the types; numpy compares several times faster than torch.

    Args:
        table: of any shape.
        cut: scalar.
    """
    if _is_numpys(table):
        return torch.from_numpy(_places(table.detach().numpy() > cut.detach().numpy()))
    if table.device.type == "cpu" and table.dtype == torch.bfloat16 and bool(cut >= 0):
        # bf16 is fp32's upper half, and bits of numbers that are not negative are in their order
        upper = cut.detach().float().view(torch.int32) >> 16
        return torch.from_numpy(_places(table.detach().view(torch.int16).numpy() > upper.to(torch.int16).numpy()))
    return true_places(table > cut[None])  # not a scalar: it would be rounded to the table's type


def places_from(table: Tensor, least: Tensor) -> Tensor:
    """Where a CPU's tensor is at least as large as another of its type, which numpy knows; NaN is everywhere.

    Args:
        table: `(rows, columns)`.
        least: what broadcasts to it.
    """
    known, bound = table.detach().numpy(), least.detach().numpy()
    return torch.from_numpy(_places(~(known < bound) if table.is_floating_point() else known >= bound))


def _places(mask: Any) -> Any:
    """Where a numpy mask is true, eight entries at a time: what is searched for is rare."""
    flat = np.ravel(mask)
    if flat.size % 8:
        return np.flatnonzero(flat)
    eights = flat.reshape(-1, 8)
    found = np.flatnonzero(flat.view(np.uint64) != 0)
    within = np.flatnonzero(eights[found])
    return (found[within >> 3] << 3) + (within & 7)


def _is_numpys(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def stable_order(keys: Tensor, end: int) -> Tensor:
    """`(n,)` int64: the permutation that sorts keys `(n,)` in `0..end - 1`; equal ones keep their order."""
    if keys.device.type == "cpu" and end <= 2**16:
        return torch.from_numpy(np.argsort(keys.numpy().astype(np.uint16), kind="stable"))  # a radix sort
    if keys.is_cuda:  # a radix sort takes a pass a byte of the key
        keys = keys.to(torch.int16 if end < 2**15 else torch.int32)
    return torch.argsort(keys, stable=True)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Scalar: the k-th largest of all entries, k at least 1 (NaN is largest)."""
    if values.device.type != "cpu":
        return torch.topk(values.flatten(), k).values[-1]
    flat = values.detach().flatten()
    known = (flat if _is_numpys(flat) else flat.float()).numpy()
    return values.new_tensor(np.partition(known, len(known) - k)[len(known) - k])


def kth_largest_of_rows(table: Tensor, k: int) -> Tensor:
    """`(rows, 1)`: the k-th largest of each row of a CPU's `(rows, columns)`, k at least 1 (NaN is largest)."""
    place = table.shape[1] - k
    return torch.from_numpy(np.partition(table.detach().numpy(), place, axis=1)[:, place : place + 1])

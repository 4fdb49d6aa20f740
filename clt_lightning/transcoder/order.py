"""Where a mask is true, how small numbers sort, which value is the k-th: on a CPU numpy is much faster than torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def true_places(mask: Tensor) -> Tensor:
    """`(n,)` int64: the places of a bool tensor, as if flattened, where it is true; in ascending order.

    On a GPU the host waits for their number.
    """
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.detach().numpy()))
    return mask.flatten().nonzero().view(-1)


def stable_order(keys: Tensor, end: int) -> Tensor:
    """`(n,)` int64: the permutation that sorts keys `(n,)` in `0..end - 1`; equal ones keep their order."""
    if keys.device.type == "cpu" and end <= 2**16:
        return torch.from_numpy(np.argsort(keys.numpy().astype(np.uint16), kind="stable"))  # a radix sort
    if keys.is_cuda:  # a radix sort takes a pass a byte of the key
        keys = keys.to(torch.int16 if end < 2**15 else torch.int32)
    return torch.argsort(keys, stable=True)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Scalar: the k-th largest of all entries, k at least 1; NaN counts as the largest."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        flat = values.detach().flatten().numpy()
        return values.new_tensor(np.partition(flat, len(flat) - k)[len(flat) - k])
    return torch.topk(values.flatten(), k).values[-1]

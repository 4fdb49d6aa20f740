"""Which part of the transcoder runs in low precision under autocast: the encoder's product, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device_type: str) -> Iterator[torch.dtype | None]:
    """Turns the caller's autocast off, and yields the type that the encoder's product is to take; None for no other.

    Only that product gains from it. On CPUs without bf16 instructions it would be 5 times slower, and fp32 is kept.
    """
    low = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    if low is not None and device_type == "cpu" and not cpu_multiplies(low):
        low = None
    with torch.autocast(device_type, enabled=False):
        yield low


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products in a low-precision type."""
    return dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()

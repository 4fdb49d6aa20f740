"""The transcoder's number types; under autocast the encoder's product runs in low precision, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clt_lightning.core.errors import UserError


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


def float_type(dtype: torch.dtype | str | None) -> torch.dtype:
    """A floating-point type from itself, from its name (`bfloat16`, `torch.float64`) or from None (`float32`).

    Raises:
        UserError: it is none that a transcoder can compute in.
    """
    known = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype or torch.float32
    if found not in known:
        names = ", ".join(str(kind).removeprefix("torch.") for kind in known)
        raise UserError(f"dtype={dtype!r} is no type of a transcoder's weights: choose one of {names}")
    assert isinstance(found, torch.dtype)
    return found

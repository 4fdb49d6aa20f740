"""Which kernels the sparse path runs on: torch operations, or Triton's on a CUDA device.

`CLT_LIGHTNING_KERNELS` decides: `auto` (the default) takes Triton for CUDA tensors where Triton is installed, `torch`
never, `triton` always (on CPU tensors only under Triton's interpreter, `TRITON_INTERPRET=1`: for tests).
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

from torch import Tensor

from clt_lightning.core.errors import UserError

VARIABLE = "CLT_LIGHTNING_KERNELS"
_DTYPES = ("torch.float32", "torch.float64", "torch.bfloat16", "torch.float16")


@cache
def has_triton() -> bool:
    """Whether Triton is installed (torch brings it on Linux; elsewhere the torch operations serve)."""
    return importlib.util.find_spec("triton") is not None


def use_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels take this tensor.

    Raises:
        UserError: `CLT_LIGHTNING_KERNELS` has an unknown value, or asks for Triton where it cannot run.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in ("auto", "torch", "triton"):
        raise UserError(f"{VARIABLE} must be auto, torch or triton, got {choice!r}")
    if choice == "torch" or (choice == "auto" and not (tensor.is_cuda and has_triton())):
        return False
    if not has_triton():
        raise UserError(f"{VARIABLE}=triton, but Triton is not installed: take auto or torch")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            f"{VARIABLE}=triton, but a tensor lies on {tensor.device}: Triton needs a CUDA device (take auto or torch)"
        )
    return str(tensor.dtype) in _DTYPES

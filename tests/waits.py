"""A CPU that takes itself for a GPU: code runs its way for CUDA, and what would make the host wait is counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: What reads a value on the host, or copies to the device from memory that is not pinned
_WAIT = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy", "cpu", "nonzero"),
    *("bincount", "masked_select", "unique", "unique_consecutive", "equal", "allclose", "tensor", "new_tensor"),
    *("argwhere", "is_nonzero"),
}


class OnGPU(TorchFunctionMode):
    """While active, tensors say that they lie on a GPU; `waits` names the calls that a host would wait in."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if func == Tensor.device.__get__:
            return torch.device("cuda")
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        name = getattr(func, "__name__", "")
        if self._waits(name, args, kwargs):
            self.waits.append(name)
        if name == "to" and len(args) > 1 and isinstance(args[1], torch.device):
            return args[0]
        return func(*args, **kwargs)

    def _waits(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
            return any(_is_mask(part) for part in (args[1] if isinstance(args[1], tuple | list) else (args[1],)))
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None and any(isinstance(part, Tensor) for part in args[1:])
        if name == "where":
            return len(args) == 1
        return name in _WAIT


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)

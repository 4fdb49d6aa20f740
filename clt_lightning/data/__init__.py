"""Images in, batches out: WebDataset tars, loaders that resume exactly, the sets, and the commands that make the tars.

The sets are imported on first use: `python -m clt_lightning shard` must not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clt_lightning.data.modules import CIFAR100, COCO, Demo, ImageNet100, WebImages

__all__ = ["CIFAR100", "COCO", "Demo", "ImageNet100", "WebImages"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("clt_lightning.data.modules"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

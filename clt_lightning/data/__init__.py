"""Images in, batches out: WebDataset tars, loaders that resume exactly, the sets, and the commands that make the tars.

The sets are imported on first use: `python -m clt_lightning shard` must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clt_lightning.data.sets.base import WebImages
    from clt_lightning.data.sets.cifar100.module import CIFAR100
    from clt_lightning.data.sets.coco.module import COCO
    from clt_lightning.data.sets.demo.module import Demo
    from clt_lightning.data.sets.imagenet100.module import ImageNet100
    from clt_lightning.data.sets.studies.module import Studies
    from clt_lightning.data.sets.waterbirds.module import Waterbirds
    from clt_lightning.data.worlds.planted import Planted

__all__ = ["CIFAR100", "COCO", "Demo", "ImageNet100", "Planted", "Studies", "Waterbirds", "WebImages"]


def __getattr__(name: str) -> Any:
    if name == "Planted":
        from clt_lightning.data.worlds.planted import Planted

        return Planted
    if not name.startswith("_") and name[:1].isupper():
        from clt_lightning.data.sets.modules import CLASSES

        if name in CLASSES:
            globals().update(CLASSES)
            return CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 pixels, 100 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.data.sets.base import WebImages


class CIFAR100(WebImages):
    """CIFAR-100 from tars in the public layout, ours or `wds_vtab-cifar100` (45,000 training images, and
    no `val` split).

    Make them with `python -m clt_lightning shard cifar100 --source cifar-100-python.tar.gz --output data/cifar100`.
    The 100 class names and the 18 public CIFAR templates are built in; those beside the tars win.

    Args:
        root: Folder of the tars.
        **kwargs: As in `WebImages`.
    """

    set_name = "cifar100"
    shard_hint = (
        "Make the tars with: python -m clt_lightning shard cifar100 --source cifar-100-python.tar.gz --output {root}"
    )
    default_classnames = "cifar100"
    default_templates = "templates_cifar18"

    def __init__(self, root: str | Path = "data/cifar100", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)

    def _read_names(self) -> None:
        super()._read_names()
        if self.n_classes != 100:
            raise UserError(f"CIFAR-100 has 100 classes, but {self._names_from()} lists {self.n_classes}")

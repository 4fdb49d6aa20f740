"""Pictures of a folder or an archive, without a data set's form: what a command looks at beside its splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.say import doubt
from clt_lightning.data.feed.image import open_image
from clt_lightning.data.sharding.sources import Tree, open_tree

#: Pictures that cannot be read that are named
_NAMED = 3


@dataclass(frozen=True)
class LoosePictures:
    """Pictures that can be read.

    Attributes:
        tree: where they lie.
        names: theirs.
        transform: of the backbone, to `(3, size, size)`.
        batch: pictures read at once.
    """

    tree: Tree
    names: list[str]
    transform: Callable[[Image.Image], Any]
    batch: int = 32

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.names), self.batch):
            part = self.names[start : start + self.batch]
            yield torch.stack([self.transform(open_image(self.tree.read(name))) for name in part])


def find_pictures(place: Path, option: str, most: int, transform: Callable[[Image.Image], Any]) -> LoosePictures:
    """The pictures of a folder (and the folders in it), a zip or a tar; those that cannot be read are named.

    Each that is taken is decoded once here, as data modules decode theirs, so that what cannot be read is known before
    long work begins.

    Args:
        place: the folder or archive.
        option: the option that named it, for messages.
        most: pictures at most, evenly spaced.
        transform: of the backbone.

    Raises:
        UserError: there is no such place, no picture in it, or none that can be read.
    """
    if not place.exists():
        raise UserError(f"{option} {place}: there is no such folder or archive")
    tree = open_tree(place)
    names = tree.images
    if not names:
        raise UserError(f"{option} {place}: there is no picture in it")
    names = [names[n * len(names) // min(most, len(names))] for n in range(min(most, len(names)))]
    good, bad = [], []
    for name in names:
        try:
            open_image(tree.read(name))
            good.append(name)
        except Exception as error:  # Pillow raises nearly anything on broken bytes
            bad.append(f"{name} ({error})")
    if not good:
        raise UserError(f"{option} {place}: none of {len(names)} pictures can be read, the first is {bad[0]}")
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        doubt(
            f"{option} {place}: {len(bad)} of {len(names)} pictures cannot be read and are left out: "
            f"{'; '.join(bad[:_NAMED])}{more}"
        )
    return LoosePictures(tree, good, transform)

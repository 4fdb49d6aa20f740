"""Thumbnails in sprite sheets: a few hundred files in the place of ten thousand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clt_lightning.report.folder import ReportFolder

COLUMNS = ROWS = 6
QUALITY = 78


class Sprites:
    """Thumbnails, kept compressed until the sheets are put together: about 10 kB of memory an image.

    Args:
        order: image numbers in the order of their cells; images that are seen together should be neighbours.
        size: side of a thumbnail in pixels.
    """

    def __init__(self, order: Sequence[int], size: int = 128) -> None:
        self.order = list(order)
        self.size = size
        self._wanted = frozenset(self.order)
        self._thumbnails: dict[int, bytes] = {}

    def add(self, image: int, pixels: NDArray[np.uint8]) -> None:
        """Takes an image's pixels `(H, W, 3)`; images that have no cell are ignored."""
        if image not in self._wanted:
            return
        thumbnail = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        thumbnail.save(stream, "JPEG", quality=95, subsampling=0)
        self._thumbnails[image] = stream.getvalue()

    @property
    def missing(self) -> list[int]:
        """Images that have a cell but did not come."""
        return [image for image in self.order if image not in self._thumbnails]

    def write(
        self, folder: ReportFolder, keys: Sequence[str], labels: Sequence[int], pages: AbstractSet[int] = frozenset()
    ) -> None:
        """Writes the sheets `thumbs/<nnnn>.webp` and their index `data/sprites.js`.

        Args:
            folder: the report.
            keys: of all images.
            labels: of all images; -1: none.
            pages: images that have a page of their own, if they came.
        """
        shown = [image for image in self.order if image in self._thumbnails]
        named = frozenset(self.order)
        cells = np.full(len(keys), -1, dtype=np.int64)
        cells[shown] = np.arange(len(shown))
        per_sheet = COLUMNS * ROWS
        for sheet, first in enumerate(range(0, len(shown), per_sheet)):
            images = shown[first : first + per_sheet]
            canvas = Image.new("RGB", (COLUMNS * self.size, -(-len(images) // COLUMNS) * self.size))
            for cell, image in enumerate(images):
                place = (cell % COLUMNS * self.size, cell // COLUMNS * self.size)
                canvas.paste(Image.open(io.BytesIO(self._thumbnails[image]), formats=("JPEG",)), place)
            canvas.save(folder.file(f"thumbs/{sheet:04d}.webp"), quality=QUALITY, method=4)
        folder.data(
            "sprites",
            {
                "size": self.size,
                "columns": COLUMNS,
                "rows": ROWS,
                "cell": cells.tolist(),
                # names only of what a page shows
                "keys": [key if image in named else "" for image, key in enumerate(keys)],
                "labels": list(labels),
                # a digit an image: whether it has a page
                "page": "".join("01"[cell >= 0 and image in pages] for image, cell in enumerate(cells.tolist())),
            },
        )

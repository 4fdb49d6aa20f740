"""Images and explanations from the run itself: its data, its backbone, its transcoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.image import explain_image
from clt_lightning.analysis.run import Run, open_run


class RunPictures:
    """Reads a split of a run's data and explains images of it; see `Pictures`.

    Args:
        run: the run's folder.
        split: which split.
        **opening: as in `open_run`.

    Raises:
        UserError: the run lacks its config or its transcoder.
    """

    def __init__(self, run: Path, split: str, **opening: Any) -> None:
        self.run: Run = open_run(run, "cuda" if torch.cuda.is_available() else "cpu", **opening)
        self.split = split
        self.mean, self.std = self.run.clip.mean, self.run.clip.std

    def read(self, wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yields key and image of the wanted images in the order of the data; stops when all were seen.

        Raises:
            UserError: the data cannot be read.
        """
        left = set(wanted)
        self.run.datamodule.prepare_data()
        for batch in self.run.batches(self.split):
            for key, image in zip(batch["key"], batch["image"]):
                if key in left:
                    left.discard(key)
                    yield key, image
            if not left:
                return

    @cached_property
    def _head(self) -> Tensor | None:
        return self.run.head

    def explain(self, key: str, image: Tensor, label: int) -> dict[str, Any] | None:
        """The image's explanation for its own class, or for the top one without a label; None without class names."""
        if self._head is None:
            return None
        names = list(self.run.datamodule.classnames)
        explanation = explain_image(
            self.run.clip, self.run.transcoder, image, self._head, names, label if label >= 0 else None
        )
        return explanation.to_json(key, label)

"""Images and studies of them from the run itself: its data, its backbone, its transcoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful import Baseline, Features
from clt_lightning.analysis.circuits.faithful.kept import kept_baseline
from clt_lightning.analysis.circuits.residual import explains_stream
from clt_lightning.analysis.run import Run, open_run
from clt_lightning.analysis.study import StudyOptions, study_images
from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.report.circuit import asked_targets, circuit_of, picture_of
from clt_lightning.report.studies import pack_study


class RunPictures:
    """Reads a split of a run's data and studies images of it; see `Pictures`.

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

    def study(self, images: Tensor, labels: Sequence[int], full: bool) -> list[dict[str, Any]]:
        """The data of the images' pages; without class names their codes alone."""
        clip, options = self.run.clip, StudyOptions.in_full() if full else StudyOptions()
        studies = study_images(clip, self.run.transcoder, images, self._head, labels, options)
        return [
            pack_study(study, to_pixels(image, self.mean, self.std), clip.grid, full)
            for study, image in zip(studies, images)
        ]

    def circuits(self, image: Tensor, key: str, label: int) -> dict[str, Any]:
        """Circuits of the predicted class minus the runner-up, and on a mistake minus the image's own."""
        found = picture_of(self.run, image, key, label)
        targets = asked_targets(self.run, image, label)
        return found | {"circuits": [circuit_of(self.run, image, target, self._baseline) for target in targets]}

    @cached_property
    def _baseline(self) -> Baseline | None:
        """What features of the residual stream are compared with; None for other transcoders."""
        clt = self.run.transcoder
        return kept_baseline(self.run, Features(self.run.clip, clt)) if explains_stream(clt) else None

"""Batches of several sets: put together in training, one set after the other in evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.loader import EvalLoader, TrainLoader

#: What a batch of several sets has; other fields (`multi_hot`, `captions`, `group`) mean other things in each set
FIELDS = ("image", "key", "label")


@dataclass(frozen=True)
class Study:
    """How one set's batches become part of those of all.

    Attributes:
        number: its place among the sets.
        labels: `(classes,)` int64, its classes' numbers in the list of all; None: it has no labels.
        labelled: whether batches have labels at all, which they do where any set has.
    """

    number: int
    labels: Tensor | None = None
    labelled: bool = False

    def of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of this set, with `study` `(B,)` int64 and the labels of the common list; -1 for none."""
        n = len(batch["image"])
        out = {name: batch[name] for name in FIELDS if name in batch and name != "label"}
        out["study"] = torch.full((n,), self.number)
        if self.labelled:
            label = batch.get("label")
            out["label"] = torch.full((n,), -1)
            if label is not None and self.labels is not None:
                out["label"] = torch.where(label < 0, -1, self.labels[label.clamp_min(0)])
        return out


def together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch out of one of each set, in the sets' order."""
    out: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        out[name] = torch.cat(values) if isinstance(first, Tensor) else [entry for value in values for entry in value]
    return out


class StudiesTrainLoader:
    """Epochs of batches that hold a fixed number of images of every set, with an exact position for checkpoints.

    Args:
        loaders: of each set by name, all with the same number of batches.
        studies: of each set by name.
    """

    def __init__(self, loaders: Mapping[str, TrainLoader], studies: Mapping[str, Study]) -> None:
        self.loaders, self.studies = dict(loaders), dict(studies)

    def __len__(self) -> int:
        return min(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batches in zip(*self.loaders.values()):
            yield together([self.studies[name].of(batch) for name, batch in zip(self.loaders, batches)])

    @property
    def skipped(self) -> Counter[str]:
        """How many samples were left out in the current pass, by kind."""
        return sum((loader.skipped for loader in self.loaders.values()), Counter())

    def follow(self, trainer: Any) -> None:
        """As of `TrainLoader`."""
        for loader in self.loaders.values():
            loader.follow(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The position in every set."""
        return {"studies": {name: loader.state_dict() for name, loader in self.loaders.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position.

        Raises:
            UserError: it was saved with other sets, or under other settings.
        """
        there = state.get("studies", {})
        if list(there) != list(self.loaders):
            raise UserError(
                f"the checkpoint's place in the training data is in the sets {', '.join(there) or 'of another kind'}, "
                f"this run reads {', '.join(self.loaders)}: resume with the same sets, in the same order"
            )
        for name, loader in self.loaders.items():
            loader.load_state_dict(there[name])


class StudiesEvalLoader:
    """Every sample of every set once, one set after the other.

    Args:
        loaders: of each set by name.
        studies: of each set by name.
    """

    def __init__(self, loaders: Mapping[str, EvalLoader], studies: Mapping[str, Study]) -> None:
        self.loaders, self.studies = dict(loaders), dict(studies)

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for name, loader in self.loaders.items():
            for batch in loader:
                yield self.studies[name].of(batch)

    @property
    def skipped(self) -> Counter[str]:
        """How many samples were left out in the current pass, by kind."""
        return sum((loader.skipped for loader in self.loaders.values()), Counter())

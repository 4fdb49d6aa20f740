"""The biased predictor, a linear head of unit embeddings, and embeddings of a split's images under an edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.probes.fit import Rows, fit_classes
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress

#: Begins an edit of the running model
Edit = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Head:
    """Class logits `e @ weight + bias` of unit embeddings e.

    Attributes:
        weight: `(embed_dim, classes)`.
        bias: `(classes,)`.
        name: in words.
    """

    weight: Tensor
    bias: Tensor
    name: str

    def __call__(self, embeddings: Tensor) -> Tensor:
        """`(n, classes)`."""
        return embeddings @ self.weight.to(embeddings) + self.bias.to(embeddings)

    def right(self, embeddings: Tensor, labels: Tensor) -> np.ndarray:
        """`(n,)` bool: whose largest logit is the label's."""
        return (self(embeddings).argmax(1) == labels).numpy()

    def margin(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """`(n,)`: the label's logit less the mean of the others'."""
        logits = self(embeddings)
        mine = logits.gather(1, labels.to(logits.device)[:, None])[:, 0]
        return mine - (logits.sum(1) - mine) / (logits.shape[1] - 1)

    @classmethod
    def zero_shot(cls, matrix: Tensor, scale: float) -> Head:
        """From a zero-shot head `(embed_dim, classes)`."""
        return cls(scale * matrix.detach().float().cpu(), torch.zeros(matrix.shape[1]), "zero-shot prompts")

    @classmethod
    def probe(cls, train: Embedded, val: Embedded, n_classes: int, name: str) -> Head:
        """A linear probe of training embeddings, regularised by validation ones."""
        found = fit_classes(Rows(train.embeddings, train.labels), Rows(val.embeddings, val.labels), n_classes)
        return cls(found.weight, found.bias, name)


@dataclass(frozen=True)
class Embedded:
    """A split's labelled images as embeddings.

    Attributes:
        embeddings: `(n, embed_dim)` unit, on the CPU.
        labels: `(n,)`.
        groups: `(n,)`; None where the data tell none.
    """

    embeddings: Tensor
    labels: Tensor
    groups: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: Tensor) -> Embedded:
        """Some of the images."""
        groups = None if self.groups is None else self.groups[chosen]
        return Embedded(self.embeddings[chosen], self.labels[chosen], groups)

    def need_groups(self, split: str) -> Tensor:
        """The groups.

        Raises:
            UserError: there are none.
        """
        if self.groups is None:
            raise no_groups(split)
        return self.groups


def no_groups(split: str) -> UserError:
    """Says that a split's samples name no groups."""
    return UserError(
        f"{split} has no groups: debias counts accuracy by group, which samples name in a member `group` "
        "(docs/data.md; `shard waterbirds` writes it from a table)"
    )


@torch.no_grad()
def embed(
    clip: Backbone,
    batches: Iterable[dict[str, Any]],
    edit: Edit | None = None,
    what: str = "",
    total: int | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> Embedded:
    """Embeddings of labelled images, under an edit or without.

    Args:
        clip: the backbone.
        batches: `image`, `label`, `group`.
        edit: begins the edit.
        what: for the progress line; empty: none is shown.
        total: how many images there are.
        keep: called with every batch's labelled part.

    Raises:
        UserError: no labels.
    """
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    groups: list[Tensor] = []
    with Progress(what, total, "images", show=bool(what)) as bar, (edit or nullcontext)():
        for batch in batches:
            label = batch.get("label")
            if "multi_hot" in batch:
                raise UserError("images of several categories: debias needs one label an image")
            if label is None:
                raise UserError("the images have no labels: debias needs a class of each (docs/data.md)")
            known = label >= 0
            if not bool(known.any()):
                continue
            part: dict[str, Any] = {name: batch[name][known] for name in ("image", "label", "group") if name in batch}
            rows.append(clip.encode_image(part["image"].to(clip.device)).float().cpu())
            labels.append(part["label"].long().cpu())
            if "group" in part:
                groups.append(part["group"].long().cpu())
            if keep is not None:
                keep(part)
            bar.update(len(label))
    if not labels:
        raise UserError("no image has a label: debias needs a class of each (docs/data.md)")
    return Embedded(torch.cat(rows), torch.cat(labels), torch.cat(groups) if groups else None)


def within(rows: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Rows `(n, columns)` less the mean of their class, in which each counts by its weight `(n,)`."""
    weight = torch.ones(len(rows)) if weight is None else weight
    sums = torch.zeros(int(labels.max()) + 1, rows.shape[1]).index_add_(0, labels, weight[:, None] * rows)
    counts = torch.zeros(len(sums)).index_add_(0, labels, weight)
    return rows - (sums / torch.where(counts > 0, counts, 1.0)[:, None])[labels]


class Reservoir:
    """An even sample of what passes by (Vitter's algorithm R): of each stratum, at most so many images.

    Args:
        most: of each stratum.
        seed: of the draw.
    """

    def __init__(self, most: int, seed: int) -> None:
        self.most, self._rng = most, np.random.default_rng(seed)
        self._seen: dict[int, int] = {}
        self._kept: dict[int, list[tuple[Tensor, int, int]]] = {}

    def add(self, image: Tensor, label: int, group: int, stratum: int) -> None:
        """One image passes by."""
        n = self._seen[stratum] = self._seen.get(stratum, 0) + 1
        kept = self._kept.setdefault(stratum, [])
        if len(kept) < self.most:
            kept.append((image.clone(), label, group))
        elif (place := int(self._rng.integers(n))) < self.most:
            kept[place] = (image.clone(), label, group)

    @property
    def sampled(self) -> int:
        """How many images are kept."""
        return sum(len(kept) for kept in self._kept.values())

    def sample(self) -> Sample:
        """What was kept, stratum after stratum."""
        rows = [row for stratum in sorted(self._kept) for row in self._kept[stratum]]
        images, labels, groups = zip(*rows)
        return Sample(torch.stack(images), torch.tensor(labels), torch.tensor(groups))


@dataclass(frozen=True)
class Sample:
    """Images in memory.

    Attributes:
        images: `(n, 3, size, size)`.
        labels: `(n,)`; `groups`: `(n,)`, -1 where there are none.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor

    def batches(self, size: int = 64) -> Iterable[dict[str, Any]]:
        """As a loader gives them."""
        parts = zip(self.images.split(size), self.labels.split(size), self.groups.split(size))
        for image, label, group in parts:
            yield {"image": image, "label": label, "group": group}

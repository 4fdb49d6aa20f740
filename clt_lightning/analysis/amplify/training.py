"""What is known of the training images: means, thresholds of the gate, and the neighbours of other images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.amplify.gate import Gate, GateBy
from clt_lightning.analysis.amplify.places import Amplifier
from clt_lightning.analysis.amplify.store import Store, mean_of, parts
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress

Embed = Callable[[Tensor], Tensor]
"""Preprocessed images to embeddings `(images, width)`: the space in which neighbours are looked for."""

#: Temperature of the cosines in the weights of neighbours, as usual in k-NN classification of embeddings
TEMPERATURE = 0.07
BLOCK = 1 << 22


@dataclass(frozen=True)
class Training:
    """Training images at [CLS]. Their labels are read by arms that say so, and by nothing else.

    Attributes:
        x_means: `(places, d)` mean of what is moved.
        y_means: `(targets, d_out)` mean of what is rebuilt.
        fvu: `(targets, images)` of each image.
        gate: what says of other images whether they are steered.
        terms: `(places, images, d)` what the chosen features write, summed over targets, before each token's unit.
        embeddings: `(images, embed_dim)` of length 1.
        space: `(images, width)` of length 1, in which neighbours are looked for.
        pseudo_labels: `(images,)` the class that the untouched model names.
        labels: `(images,)` int64, -1 for none.
    """

    x_means: Tensor
    y_means: Tensor
    fvu: Tensor
    gate: Gate
    terms: Tensor
    embeddings: Tensor
    space: Tensor
    pseudo_labels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.embeddings)

    def nearest(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The training images nearest to others in `space`.

        Args:
            query: `(images, width)` of length 1.
            k: how many; all of them, if there are fewer.

        Returns:
            `(images, k)` their numbers, nearest first, and cosines.
        """
        k = min(k, len(self))
        step = max(1, BLOCK // len(self))
        found = [(query[i : i + step] @ self.space.T).topk(k, 1) for i in range(0, len(query), step)]
        return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


@torch.no_grad()
def read_training(
    amplifier: Amplifier,
    batches: Iterable[Mapping[str, Any]],
    head: Tensor,
    embed: Embed | None = None,
    total: int | None = None,
    gate_by: GateBy = "fvu",
) -> Training:
    """One pass over training images; labels need not be there.

    Memory: `memory.training_bytes`.

    Args:
        amplifier: where codes are amplified.
        batches: `image`, and `label` where there is one.
        head: `(embed_dim, classes)`, for pseudo-labels.
        embed: the space of neighbours; None: the backbone's own embedding.
        total: how many images there are, for the progress.
        gate_by: what the gate goes by.

    Raises:
        UserError: no images.
    """
    clip = amplifier.clip
    rows = Store(total)
    x_sum: Tensor | int = 0
    with Progress("training images", total, "images") as progress:
        for batch in batches:
            images = batch["image"].to(clip.device)
            if not len(images):
                continue
            observed = amplifier.observe(images)
            x = torch.stack([seen.x for seen in observed.seen], 1)
            x_sum = x_sum + x.cpu().double().sum(0)
            rows.add("terms", torch.stack([seen.terms.sum(0) / seen.unit.to(seen.terms) for seen in observed.seen], 1))
            pairs = [seen.rebuilt for seen in observed.seen]
            y, y_hat = (torch.cat([pair[i] for pair in pairs]).transpose(0, 1) for i in (0, 1))
            rows.add("y", y)
            rows.add("error", (y - y_hat).square().sum(2))
            rows.add("embeddings", observed.embeddings)
            rows.add("pseudo", clip.logits(observed.embeddings, head).argmax(1))
            if embed is not None:
                rows.add("space", F.normalize(embed(images).float(), dim=-1))
            label = batch.get("label")
            rows.add("labels", torch.full((len(images),), -1) if label is None else torch.as_tensor(label).long())
            progress.update(len(images))
    if isinstance(x_sum, int):
        raise UserError(
            "amplifying needs training images (without labels) for its means and thresholds: there are none"
        )
    y, error, embeddings = rows.take("y"), rows.take("error"), rows.take("embeddings")
    y_means = mean_of(y)
    spread = torch.cat([(some - y_means.to(some)).square().sum(2) for (some,) in parts(y)])
    return Training(
        x_means=(x_sum / len(y)).to(y),
        y_means=y_means.to(y),
        fvu=(error / spread.clamp(min=1e-30)).T.contiguous(),
        gate=Gate.fit(gate_by, y, error),
        terms=rows.take("terms").transpose(0, 1),
        embeddings=embeddings,
        space=rows.take("space") if "space" in rows else embeddings,
        pseudo_labels=rows.take("pseudo"),
        labels=rows.take("labels"),
    )


def same_side(neighbour_labels: Tensor, of_query: Tensor | None) -> Tensor:
    """`(images, k)` bool: S+, the neighbours that count as the image's own class.

    Args:
        neighbour_labels: `(images, k)`, nearest first.
        of_query: `(images,)` the image's own label; None: the most frequent one among its neighbours (of equally
            frequent ones that of the nearer neighbour).
    """
    if of_query is None:
        counts = (neighbour_labels[:, :, None] == neighbour_labels[:, None, :]).sum(2)
        of_query = neighbour_labels.gather(1, counts.argmax(1, keepdim=True))[:, 0]
    return neighbour_labels == of_query[:, None]


def contrast(terms: Tensor, neighbours: Tensor, same: Tensor) -> Tensor:
    """`(images, d)`: mean of the terms over S+ less the mean over the rest.

    With an empty rest the mean over S+ stands alone (against no code at all); with an empty S+ it is 0: there is
    nothing to go to.

    Args:
        terms: `(training images, d)`.
        neighbours: `(images, k)` training images.
        same: `(images, k)` S+.
    """
    plus = same.to(terms)
    n = plus.sum(1, keepdim=True)
    rest = 1 - plus
    weights = plus / n.clamp(min=1) - rest / rest.sum(1, keepdim=True).clamp(min=1)
    weights = torch.where(n > 0, weights, torch.zeros_like(weights))
    parts = [
        torch.einsum("nk,nkd->nd", w, terms[i])
        for w, i in zip(weights.split(_rows(terms, neighbours)), neighbours.split(_rows(terms, neighbours)))
    ]
    return torch.cat(parts) if parts else terms.new_zeros(0, terms.shape[1])


def votes(labels: Tensor, cosines: Tensor, n_classes: int) -> Tensor:
    """`(images, classes)`: the neighbours' votes, `exp(cosine / TEMPERATURE)` each; those without a label have none."""
    weights = ((cosines - cosines[:, :1]) / TEMPERATURE).exp() * (labels >= 0)
    return weights.new_zeros(len(labels), n_classes).scatter_add_(1, labels.clamp(min=0), weights)


def mixed(embeddings: Tensor, neighbours: Tensor, cosines: Tensor, known: Tensor, share: float) -> Tensor:
    """Embeddings with a share of the weighted mean of their neighbours' embeddings, of length 1 (the RAG form)."""
    weights = (cosines / TEMPERATURE).softmax(1)
    mean = torch.cat(
        [
            torch.einsum("nk,nkd->nd", w, known[i])
            for w, i in zip(weights.split(_rows(known, neighbours)), neighbours.split(_rows(known, neighbours)))
        ]
    )
    return F.normalize((1 - share) * embeddings + share * mean.to(embeddings), dim=-1)


def _rows(table: Tensor, neighbours: Tensor) -> int:
    """Images whose neighbours are looked up at once."""
    return max(1, BLOCK // max(1, neighbours.shape[1] * table.shape[1]))

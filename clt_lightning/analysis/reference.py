"""The pass over training images: term means, scores to rank by, and the population that held-out images face."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.arms import ORIGINAL, Arm, ArmRunner, Known
from clt_lightning.analysis.contributions import Contributions, ContributionScores
from clt_lightning.analysis.population import TrainSums
from clt_lightning.analysis.suite import Analysis, Batch, Subject
from clt_lightning.analysis.table import ImageTable
from clt_lightning.backbone import Backbone
from clt_lightning.core.tokens import TokenLayout
from clt_lightning.interventions.replacement import check_fit, tokens_of
from clt_lightning.metrics import ExactMetric, divergences, metric_device, ranks_of
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Reference:
    """What is known from training images.

    Attributes:
        n_images: how many.
        scores: contributions by token set.
        kinds: the token sets that divide an image's tokens (`TokenLayout.kinds`).
        y_means: `(L, kinds, d)` mean MLP outputs at each of them.
        sums: what the FVU of resamples needs.
        l0: `(m,)` active features per token, mean over layers.
        kl: `(m,)` KL of the largest replaced window; None without classes.
        drop: `(m,)` original right minus replaced right, NaN without label; None without classes.
    """

    n_images: int
    scores: dict[str, ContributionScores]
    kinds: tuple[str, ...]
    y_means: Tensor
    sums: TrainSums
    l0: np.ndarray
    kl: np.ndarray | None
    drop: np.ndarray | None

    def term_means(self, layer: int) -> Tensor:
        """`(kinds, layer + 1, d)` mean terms into a layer at each kind of token."""
        return torch.stack([self.scores[kind].means[: layer + 1, layer] for kind in self.kinds]).float()

    @property
    def feature_means(self) -> Tensor:
        """`(L, kinds, d)` mean of what features add to each layer, at each kind of token."""
        return torch.stack([self.scores[kind].means.sum(0) for kind in self.kinds], 1).float()

    @property
    def skip_means(self) -> Tensor:
        """`(L, kinds, d)` mean of what the linear skip adds to each layer, at each kind of token."""
        return torch.stack([self.scores[kind].rest_means[0] for kind in self.kinds], 1).float()


def image_columns(batch: Batch, n_positions: int) -> dict[str, Tensor]:
    """Of each image the squared error of every layer, `error (images, L)`, and its active features per token, `l0`."""
    error = (batch.seen.y.float() - batch.y_hat.float()).unflatten(1, (-1, n_positions))
    active = batch.codes.l0().double().unflatten(1, (-1, n_positions))
    return {"error": error.double().square().sum((2, 3)).T, "l0": active.mean((0, 2))}


class HeldOutImages(Analysis):
    """What the population check wants to know of every held-out image."""

    name = "held_out"

    def begin(self, subject: Subject) -> None:
        self._positions = subject.tokens.n_positions
        self._table = ImageTable()

    def update(self, batch: Batch) -> None:
        self._table.add(batch.keys, image_columns(batch, self._positions))

    def result(self) -> dict[str, np.ndarray]:
        """`error (n, L)` and `l0 (n,)` of all processes' images, sorted by key."""
        return self._table.gathered()[1]


class TrainingImages(Analysis):
    """Collects a `Reference` over a stream of training images.

    Args:
        subject: what is evaluated.
        arm: of which KL and accuracy drop are kept as well; None, or no classes: neither.
    """

    name = "training"

    def __init__(self, subject: Subject, arm: Arm | None = None) -> None:
        self._arms = [] if arm is None or subject.head is None else [ORIGINAL, arm]
        self._runner = ArmRunner(subject.clip, subject.clt)
        self.needs = self._runner.needs(self._arms)

    def begin(self, subject: Subject) -> None:
        self._subject, self._clt, self._tokens = subject, subject.clt, subject.tokens
        self._contributions = Contributions(subject.clt).to(subject.device)
        self._table = ImageTable()

    def update(self, batch: Batch) -> None:
        tokens = self._tokens
        self._contributions.update(batch.codes, tokens, x=batch.seen.x)
        # measured from the training mean: exact in float32, and nothing cancels later
        centred = batch.seen.y.float().unflatten(1, (-1, tokens.n_positions)) - self._clt.y_mean[:, None, None].float()
        columns = {
            **image_columns(batch, tokens.n_positions),
            "squares": centred.double().square().sum((2, 3)).T,
        }
        for kind in tokens.kinds:
            columns[kind] = centred[:, :, tokens.span(kind)].double().sum(2).float().transpose(0, 1)
        self._table.add(batch.keys, columns | self._outcomes(batch))

    def _outcomes(self, batch: Batch) -> dict[str, Tensor]:
        """KL and accuracy drop of the arm, `(images,)`."""
        if not self._arms:
            return {}
        subject, labels = self._subject, batch.labels
        everyone = torch.ones_like(labels, dtype=torch.bool)
        found = self._runner.all_embeddings(self._arms, Known(batch.seen, batch.codes, batch.y_hat), everyone)
        original, replaced = (subject.cosines(embeddings) for embeddings in found)
        right = [(ranks_of(cosines, labels) == 0).double() for cosines in (original, replaced)]
        drop = (right[0] - right[1]).masked_fill(labels < 0, torch.nan)
        return {"kl": divergences(original, replaced, subject.clip.logit_scale), "drop": drop}

    def result(self) -> Reference | None:
        """Of all processes' images, all of which must call this; None without any."""
        keys, columns = self._table.gathered()
        if not len(keys):
            return None
        scores = self._contributions.scores()
        tokens = self._tokens
        means = [columns[kind].mean(0, dtype=np.float64) / tokens.size(kind) for kind in tokens.kinds]
        origin = self._clt.y_mean.double().cpu()
        y_means = torch.stack([torch.from_numpy(mean) + origin for mean in means], 1).float()
        total = sum(columns[kind].astype(np.float64) for kind in tokens.kinds)
        sums = TrainSums(columns["error"], columns["squares"], np.asarray(total), tokens.n_positions)
        outcomes = columns.get("kl"), columns.get("drop")
        return Reference(len(keys), scores, tokens.kinds, y_means, sums, columns["l0"], *outcomes)


def training_means(clt: CrossLayerTranscoder, tokens: TokenLayout, known: Reference | None) -> Tensor | None:
    """What mean ablation puts in the place of each layer's site: `(L, kinds, d)`, one mean for every kind of token.

    Without training images the mean over all tokens, which the transcoder knows, stands for every kind; None where it
    has seen none.
    """
    if known is not None:
        return known.y_means
    return clt.y_mean[:, None].expand(-1, len(tokens.kinds), -1) if bool(clt.normalized) else None


class _SiteSums(ExactMetric):
    """Sums of what a transcoder rebuilds, by layer and kind of token, over images."""

    sums: Tensor
    images: Tensor

    def __init__(self, n_layers: int, kinds: int, d: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(n_layers, kinds, d, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, sums: Tensor, images: int) -> None:
        self.sums += sums.to(self.sums)
        self.images += images

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.sums, self.images


@torch.no_grad()
def read_means(clip: Backbone, clt: CrossLayerTranscoder, batches: Iterable[Mapping[str, Any]] | None) -> Tensor | None:
    """The means of `training_means` from training images alone, without running the transcoder.

    Args:
        clip: the backbone.
        clt: the transcoder.
        batches: of training images, on each process its own; None: there are none.

    Returns:
        `(L, kinds, d)` over all processes, all of which must call this; None without images.
    """
    if batches is None:
        return None
    tokens, sites, blocks = tokens_of(clip, clt), (str(clt.sites.read), str(clt.sites.write)), check_fit(clip, clt)
    metric = _SiteSums(clt.n_layers, len(tokens.kinds), clt.d_out).to(metric_device(clip.device))
    for data in batches:
        y = clip.capture(data["image"], blocks, sites=sites).y.unflatten(1, (-1, tokens.n_positions))
        parts = [y[:, :, tokens.span(kind)].double().mean(2).sum(1) for kind in tokens.kinds]
        metric.update(torch.stack(parts, 1), len(data["image"]))
    sums, images = metric.compute()
    shape = (clt.n_layers, len(tokens.kinds), clt.d_out)
    return (sums.reshape(shape) / images).float() if int(images) else None

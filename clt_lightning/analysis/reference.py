"""The pass over training images: term means, scores to rank by, and the population that held-out images face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.contributions import Contributions, ContributionScores
from clt_lightning.analysis.population import TrainSums
from clt_lightning.analysis.table import ImageTable
from clt_lightning.analysis.tower import Observation
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import metric_device
from clt_lightning.transcoder import Codes, CrossLayerTranscoder


@dataclass(frozen=True)
class Reference:
    """What is known from training images.

    Attributes:
        n_images: how many.
        scores: contributions by token set.
        kinds: the token sets that divide an image's tokens (`TokenLayout.kinds`).
        y_means: `(L, kinds, d)` mean MLP outputs at each of them.
        sums: what the FVU of resamples needs.
        kl: `(m,)` KL of the largest replaced window; None without classes.
        drop: `(m,)` original right minus replaced right, NaN without label; None without classes.
    """

    n_images: int
    scores: dict[str, ContributionScores]
    kinds: tuple[str, ...]
    y_means: Tensor
    sums: TrainSums
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


class ReferenceCollector:
    """Collects a `Reference` over a stream of training images.

    Args:
        clip: the backbone.
        clt: the transcoder.
    """

    def __init__(self, clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
        self.clip, self.clt, self.tokens = clip, clt, tokens_of(clip, clt)
        self.contributions = Contributions(clt).to(metric_device(clip.device))
        self.table = ImageTable()

    def update(
        self,
        keys: list[str],
        codes: Codes,
        seen: Observation,
        y_hat: Tensor,
        outcomes: dict[str, Tensor],
    ) -> None:
        """Take in one batch.

        Args:
            keys: of the images.
            codes: their codes.
            seen: the untouched model on them.
            y_hat: rebuilt MLP outputs `(L, tokens, d)`.
            outcomes: further columns `(images,)`.
        """
        positions = self.tokens.n_positions
        self.contributions.update(codes, self.tokens, x=seen.x)
        by_image = {
            name: torch.stack([layer.unflatten(0, (-1, positions)) for layer in values.float()])
            for name, values in (("y", seen.y), ("y_hat", y_hat))
        }
        # measured from the training mean: exact in float32, and nothing cancels later
        centred = by_image["y"] - self.clt.y_mean[:, None, None].float()
        columns = {
            "error": (by_image["y"] - by_image["y_hat"]).double().square().sum((2, 3)).T,
            "squares": centred.double().square().sum((2, 3)).T,
        }
        for kind in self.tokens.kinds:
            part = centred[:, :, self.tokens.span(kind)]
            columns[kind] = part.double().sum(2).float().transpose(0, 1)
        self.table.add(keys, columns | outcomes)

    def result(self) -> Reference:
        """All processes' images; every process must call this."""
        scores = self.contributions.scores()
        keys, columns = self.table.gathered()
        tokens = self.tokens
        means = [columns[kind].mean(0, dtype=np.float64) / tokens.size(kind) for kind in tokens.kinds]
        origin = self.clt.y_mean.double().cpu()
        y_means = torch.stack([torch.from_numpy(mean) + origin for mean in means], 1).float()
        total = sum(columns[kind].astype(np.float64) for kind in tokens.kinds)
        sums = TrainSums(columns["error"], columns["squares"], np.asarray(total), tokens.n_positions)
        return Reference(len(keys), scores, tokens.kinds, y_means, sums, columns.get("kl"), columns.get("drop"))

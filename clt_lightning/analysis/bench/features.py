"""Measures of single features, from codes of test images: where they fire, and on which images most."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.features import monosemanticity
from clt_lightning.analysis.spatial import MORAN_ACTIVE, moran

#: A feature is measured if it fires on so many images, of which a mean cosine can be told from chance
LEAST_IMAGES = 5
_CHUNK = 256  # features at once
_MAPS = 16_384  # maps at once


class Coherence:
    """Moran's I of one layer's maps, and of the same codes at shuffled positions; means over images.

    Args:
        n_features: F.
        grid: patches as (rows, columns).
        seed: of the shuffles, one per image.
    """

    def __init__(self, n_features: int, grid: tuple[int, int], seed: int) -> None:
        self.grid = grid
        self.total = torch.zeros(2, n_features, dtype=torch.float64)
        self.count = torch.zeros(n_features, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, patches: Tensor) -> None:
        """Codes `(images, patches, F)`."""
        places = torch.rand(patches.shape[:2], generator=self.generator).argsort(1).to(patches.device)
        enough = ((patches != 0).sum(1) >= MORAN_ACTIVE).nonzero()  # most features fire on few images, or at few places
        for images, features in (some.T for some in enough.split(_MAPS)):
            codes = patches[images, :, features]
            both = torch.stack([codes, codes.gather(1, places[images])])
            found = moran(both.unflatten(2, self.grid).permute(0, 2, 3, 1)).cpu()
            counts = ~found.isnan().any(0)
            rows = features.cpu()[counts]
            self.total.index_add_(1, rows, found[:, counts].double())
            self.count.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))

    def columns(self) -> np.ndarray:
        """`(features that have a map, 2)`: as they are, shuffled."""
        measured = self.count > 0
        return (self.total[:, measured] / self.count[measured]).T.numpy()


class TopImages:
    """For each feature of one layer the images with the largest codes, by magnitude.

    Args:
        n_features: F.
        k: images kept of each.
    """

    def __init__(self, n_features: int, k: int) -> None:
        self.score = torch.zeros(n_features, k)
        self.image = torch.zeros(n_features, k, dtype=torch.int64)
        self.seen = 0

    def add(self, codes: Tensor) -> None:
        """Codes `(images, positions, F)`, or `(images, F)` of a site that has no tokens."""
        size = codes.abs()
        largest = (size if codes.ndim == 2 else size.amax(1)).T.float().cpu()
        numbers = torch.arange(self.seen, self.seen + len(codes)).expand(len(largest), -1)
        self.score, chosen = torch.cat([self.score, largest], 1).topk(self.score.shape[1], 1)
        self.image = torch.cat([self.image, numbers], 1).gather(1, chosen)
        self.seen += len(codes)

    def columns(self, embeddings: Tensor, seed: int) -> np.ndarray:
        """`(features that fire on enough images, 2)`: mean cosine of all pairs of top images, weighted by the product
        of their activations; and with as many random images in their place, at the same weights.

        Args:
            embeddings: `(images, width)` of length 1, in the order in which images were added.
            seed: of the random images.
        """
        rows = ((self.score > 0).sum(1) >= LEAST_IMAGES).nonzero()[:, 0]
        generator, n = torch.Generator().manual_seed(seed), len(embeddings)
        found = [np.empty((0, 2))]
        for some in rows.split(_CHUNK):
            weight = self.score[some, :n].double()
            weight = weight / weight.amax(1, keepdim=True)
            # as many different ones
            drawn = torch.rand(len(some), n, generator=generator).topk(weight.shape[1], 1).indices
            found.append(
                torch.stack([_alike(embeddings, which, weight) for which in (self.image[some, :n], drawn)], 1).numpy()
            )
        return np.concatenate(found)


def _alike(embeddings: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    total = torch.einsum("fk,fkd->fd", weight, embeddings[images].double())
    return monosemanticity(total, weight.sum(1), weight.square().sum(1), (weight > 0).sum(1))

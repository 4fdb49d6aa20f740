"""A grid of features and the images on which they are strongest, with the codes drawn over the patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from clt_lightning.report.figures.style import house_style, new_figure
from clt_lightning.transcoder.codes import Codes


@dataclass
class TopImages:
    """Keeps the strongest images of a few features of one layer, batch by batch.

    Args:
        layer: which layer.
        features: which of its features.
        k: images per feature.

    Attributes:
        found: for each feature, strongest first: the image's largest |code|, its pixels `(H, W, 3)` and its codes
            `(P,)`.
    """

    layer: int
    features: list[int]
    k: int
    found: list[list[tuple[float, NDArray[np.uint8], NDArray[np.float32]]]] = field(init=False)

    def __post_init__(self) -> None:
        self.found = [[] for _ in self.features]

    def update(self, codes: Codes, pixels: Sequence[NDArray[np.uint8]]) -> None:
        """Takes one batch of whole images.

        Args:
            codes: of all their tokens, image-major.
            pixels: the images.
        """
        pairs, values = codes.layer(self.layer)
        for row, feature in enumerate(self.features):
            at = pairs.features == feature
            dense = torch.zeros(pairs.n_tokens, device=values.device)
            dense.index_add_(0, pairs.tokens[at], values[at].detach().float())
            maps: Tensor = dense.view(len(pixels), -1).cpu()
            strength = maps.abs().amax(1)
            for image in strength.topk(min(self.k, len(pixels))).indices.tolist():
                if strength[image] > 0:
                    self.found[row].append((float(strength[image]), pixels[image], maps[image].numpy()))
            self.found[row].sort(key=lambda entry: -entry[0])
            del self.found[row][self.k :]


def top_images_grid(top: TopImages, grid: tuple[int, int], n_prefix: int = 1) -> Figure:
    """Features along y, their strongest images along x; squares on one colour scale per feature.

    Args:
        top: what was found.
        grid: patches as (rows, columns).
        n_prefix: tokens before them.
    """
    with house_style():
        figure = new_figure(1.05 * top.k + 0.9, 1.2 * len(top.features) + 0.35)
        figure.suptitle(f"layer {top.layer}", fontsize=10)
        panels = figure.subplots(len(top.features), top.k, squeeze=False)
        for row, (feature, found) in enumerate(zip(top.features, top.found)):
            panels[row][0].set_ylabel(f"{feature}", rotation=0, ha="right", va="center", fontsize=8)
            for column, axes in enumerate(panels[row]):
                axes.grid(False)
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if column < len(found):
                    value, pixels, codes = found[column]
                    height, width = pixels.shape[:2]
                    axes.imshow(pixels, extent=(0, width, height, 0))
                    patches = np.abs(codes[n_prefix : n_prefix + grid[0] * grid[1]]).reshape(grid)
                    axes.imshow(
                        np.ma.masked_equal(patches, 0.0),
                        cmap="inferno",
                        vmin=0,
                        vmax=found[0][0],
                        alpha=0.5,
                        extent=(0, width, height, 0),
                        interpolation="nearest",
                    )
                    axes.set_title(f"{value:.3g}", fontsize=7, pad=2)
    return figure

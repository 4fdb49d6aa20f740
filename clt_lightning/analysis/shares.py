"""Who makes the logit: embedding, attention, features, linear skip, biases, error, in the mean over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.intervals import Interval, mean_intervals
from clt_lightning.analysis.last_residual import LastResidual, at_cls
from clt_lightning.analysis.table import ImageTable
from clt_lightning.analysis.tower import Observation, reads_cls_only
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder

#: The logit of the predicted class, and that minus the runner-up's
TARGETS = ("logit", "margin")
PARTS = ("embedding", "attention", "features", "skip", "bias", "error", "norm_bias")


def measurable(clip: FrozenCLIP, head: Tensor | None) -> bool:
    """Whether a logit can be split up: class names, and an embedding that is read from [CLS] through one LayerNorm."""
    return head is not None and head.shape[1] > 1 and reads_cls_only(clip)


class LogitShares:
    """What each part of the model adds directly to the logits of the untouched model, image by image.

    The last [CLS] residual is a sum; LayerNorm's scale and the embedding's norm are the image's own, so that the parts
    sum to the logit. `bias` are the decoder biases, `error` is what the reconstruction leaves out, `norm_bias` the last
    LayerNorm's own bias.

    Args:
        clip: the backbone.
        clt: the transcoder.
        head: `(embed_dim, classes)`.
    """

    def __init__(self, clip: FrozenCLIP, clt: CrossLayerTranscoder, head: Tensor | None) -> None:
        assert head is not None
        self.clip, self.clt, self.head = clip, clt, head.double().to(clip.device)
        self._table = ImageTable()

    @torch.no_grad()
    def update(self, keys: Sequence[str], seen: Observation, y_hat: Tensor) -> None:
        """Take in one batch: the untouched model on it, and the reconstruction `(layers, tokens, d_model)`."""
        self._table.add(keys, {"parts": self.parts(seen, y_hat)})

    def parts(self, seen: Observation, y_hat: Tensor) -> Tensor:
        """`(images, targets, parts)` float64, in the order of `TARGETS` and `PARTS`."""
        clt, n = self.clt, seen.n_images
        first = (seen.embeddings.double() @ self.head).topk(2, 1).indices
        own, other = self.head[:, first[:, 0]], self.head[:, first[:, 1]]
        residual = LastResidual.of(self.clip, seen)
        directions, norm_bias = residual.reading(torch.stack([own, own - other], -1).transpose(0, 1))
        x, rebuilt = at_cls(seen.x, n), at_cls(y_hat, n).double().sum(0)
        skip = torch.stack([clt.skip_term(x[layer], layer).double() for layer in range(clt.n_layers)]).sum(0)
        bias = torch.stack([clt.bias(layer).double() for layer in range(clt.n_layers)]).sum(0)
        vectors = torch.stack(
            [
                residual.embedding,
                residual.attention.sum(0),
                rebuilt - skip - bias,
                skip,
                bias.expand(n, -1),
                residual.y.sum(0) - rebuilt,
            ]
        )
        read = torch.einsum("pnd,ntd->ntp", vectors, directions)
        return torch.cat([read, norm_bias[:, :, None]], 2)

    def result(self, draws: int, seed: int) -> dict[str, dict[str, Interval]]:
        """Means over all processes' images with intervals, by target and part; `sum` is the logit or the margin itself.

        Every process must call this.
        """
        _, columns = self._table.gathered()
        parts = columns["parts"] if columns else np.zeros((0, len(TARGETS), len(PARTS)))
        whole = np.concatenate([parts, parts.sum(2, keepdims=True)], 2)
        return {
            target: dict(zip((*PARTS, "sum"), mean_intervals(whole[:, index], draws, seed)))
            for index, target in enumerate(TARGETS)
        }

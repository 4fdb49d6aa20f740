"""Codes of [CLS] near those of their class (PASS, Chatterji et al. 2025, arXiv 2506.01247)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clt_lightning.training.losses.base import LossInputs
from clt_lightning.training.losses.warmup import check_part
from clt_lightning.transcoder.codes import Codes


@dataclass
class PrototypeConfig:
    """Prototype term, `mean over layers, [CLS] tokens of sum_f ((z_f - mean of its class) * ||W_dec_f||)^2 / d_out`.

    The mean of a class is that of the step's own [CLS] tokens, in each process (and chunk) by itself: a class with one
    image in a batch is not pulled, so batches should hold several images of each class. It needs labels.

    Args:
        coefficient: weight in the loss; 0 turns it off. Published: 0.8, for an autoencoder at `resid_post[-1]`.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    name: ClassVar[str] = "prototype"
    needs: ClassVar[Collection[str]] = ("codes", "labels", "positions")
    sums_features: ClassVar[bool] = True
    coefficient: float = 0.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_part(self, "loss.prototype")

    def value(self, given: LossInputs) -> Tensor:
        """Without the coefficient, of this process's features."""
        chosen = (given.positions == 0) & (given.labels >= 0)
        spread = prototype_spread(given.codes.select_tokens(chosen), given.labels[chosen], given.decoder_norms)
        return spread / given.clt.d_out


def prototype_spread(codes: Codes, labels: Tensor, norms: Tensor) -> Tensor:
    """Mean over layers and tokens of `sum_f ((z_f - mean of the class) * norm_f)^2`; 0 without tokens.

    Args:
        codes: of the tokens.
        labels: `(tokens,)` int64 classes.
        norms: `(layers, F)`.
    """
    total = norms.new_zeros(())
    n = labels.numel()
    if n == 0:
        return total + 0 * sum(values.sum() for values in codes.layer_values)
    classes, place = labels.unique(return_inverse=True)
    counts = torch.bincount(place, minlength=len(classes))
    for layer in range(codes.n_layers):
        z = codes.dense_layer(layer) * norms[layer]
        sums = z.new_zeros(len(classes), z.shape[1]).index_add(0, place, z)
        total = total + (z - (sums / counts[:, None].to(z))[place]).square().sum() / n
    return total / codes.n_layers

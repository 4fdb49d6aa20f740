"""The penalty on pre-activations below their threshold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clt_lightning.training.losses.base import LossInputs
from clt_lightning.training.losses.warmup import check_part
from clt_lightning.training.losses.weighed import mean_of_sums


@dataclass
class PreActivationConfig:
    """Pre-activation penalty, `sum_f relu(threshold_f - pre_f) * ||W_dec_f||`: pulls silent features back.

    Its gradient is dense, so the step takes the dense path when it is on.

    Args:
        coefficient: weight in the loss; 0 turns it off.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    name: ClassVar[str] = "pre_activation"
    needs: ClassVar[Collection[str]] = ("pre",)
    sums_features: ClassVar[bool] = True
    coefficient: float = 0.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_part(self, "loss.pre_activation")

    def value(self, given: LossInputs) -> Tensor:
        """Without the coefficient, of this process's features."""
        return pre_activation_penalty(given.pre, given.clt.activation.thresholds(), given.decoder_norms)


def pre_activation_penalty(pre: Sequence[Tensor], thresholds: Tensor | float, norms: Tensor) -> Tensor:
    """Depth of pre-activations below the threshold x decoder norm, see `PreActivationConfig`.

    Args:
        pre: one `(tokens, F)` per layer.
        thresholds: `(layers, F)` or a number.
        norms: `(layers, F)`.
    """
    layers = []
    for layer, values in enumerate(pre):
        threshold = thresholds[layer] if isinstance(thresholds, Tensor) else thresholds
        layers.append(torch.relu(threshold - values) * norms[layer])
    return mean_of_sums(layers, pre[0].shape[0])

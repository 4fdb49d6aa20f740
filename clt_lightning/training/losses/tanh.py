"""The tanh penalty."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clt_lightning.training.losses.base import LossInputs
from clt_lightning.training.losses.warmup import check_part
from clt_lightning.training.losses.weighed import mean_of_sums, weighed_codes
from clt_lightning.transcoder.codes import Codes


@dataclass
class TanhConfig:
    """Tanh penalty, `mean over layers, tokens of sum_f tanh(c * |z_f| * ||W_dec_f||)`: close to L0, bounded a feature.

    Args:
        coefficient: weight in the loss; 0 turns it off.
        c: steepness; a code counts fully from about 2 / c on.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    name: ClassVar[str] = "tanh"
    needs: ClassVar[Collection[str]] = ("codes",)
    sums_features: ClassVar[bool] = True
    coefficient: float = 0.0
    c: float = 4.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_part(self, "loss.tanh")

    def value(self, given: LossInputs) -> Tensor:
        """Without the coefficient, of this process's features."""
        return tanh_penalty(given.codes, given.decoder_norms, self.c)


def tanh_penalty(codes: Codes, norms: Tensor, c: float) -> Tensor:
    """Tanh of c x code x decoder norm, see `TanhConfig`; `norms` is `(layers, F)`."""
    return mean_of_sums([torch.tanh(c * v) for v in weighed_codes(codes, norms)], codes.n_tokens)

"""The L1 penalty."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clt_lightning.training.losses.base import LossInputs
from clt_lightning.training.losses.warmup import check_part
from clt_lightning.training.losses.weighed import mean_of_sums, weighed_codes
from clt_lightning.transcoder.codes import Codes


@dataclass
class L1Config:
    """L1 penalty, `mean over layers, tokens of sum_f |z_f| * ||W_dec_f||`, with the norm of the concatenated decoders.

    Args:
        coefficient: weight in the loss; 0 turns it off.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    name: ClassVar[str] = "l1"
    needs: ClassVar[Collection[str]] = ("codes",)
    sums_features: ClassVar[bool] = True
    coefficient: float = 0.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_part(self, "loss.l1")

    def value(self, given: LossInputs) -> Tensor:
        """Without the coefficient, of this process's features."""
        return l1_penalty(given.codes, given.decoder_norms)


def l1_penalty(codes: Codes, norms: Tensor) -> Tensor:
    """L1 of code x decoder norm, see `L1Config`; `norms` is `(layers, F)`."""
    return mean_of_sums(weighed_codes(codes, norms), codes.n_tokens)

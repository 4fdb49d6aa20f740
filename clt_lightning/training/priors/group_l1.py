"""The plain group lasso: the baseline of the sparse-decoding prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clt_lightning.training.priors.sparse_decoding import SparseDecoding


@dataclass
class GroupL1(SparseDecoding):
    """L1 on the norms of the decoder's groups: all of one rate, whether they are needed or not.

    As `SparseDecoding` with the spike's rate for every group: the same proximal step, warm-up and refit.

    Args:
        coefficient: weight of the penalty, in Adam's steps.
        lambda0: rate of all groups.
        lambda1: what the rate rises from.
        a: without effect.
        b: without effect.
        start: share of the run before the penalty begins.
        warmup_fraction: share of the run over which the rate rises then.
        warmup_steps: the same in optimizer steps, in its place.
        refit: share of the run at its end without a penalty; zeros stay zero.
        until: as of `SparseDecoding`.
        lazy: as of `SparseDecoding`.
    """

    name: ClassVar[str] = "group_l1"
    adapts: ClassVar[bool] = False
    coefficient: float = 0.08

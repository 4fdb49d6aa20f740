"""What the codes look like: how many features fire for a token, and how many never do."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.metrics.base import ExactMetric, check_shape


class L0(ExactMetric):
    """Mean number of non-zero codes per token, per layer.

    Args:
        n_layers: layers L.
    """

    per_layer = True
    total: Tensor
    count: Tensor

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.add_state("total", torch.zeros(n_layers, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, active: Tensor) -> None:
        """Take in one batch.

        Args:
            active: `(L, tokens...)` number of non-zero codes of each token, as `Codes.l0()` gives it (integers).

        Raises:
            UserError: if the shape does not fit, or if these are not counts.
        """
        check_shape(self, "active", active, expected=(self.n_layers, None))
        if active.is_floating_point():
            raise UserError(f"L0: expected integer counts per token (codes.l0()), got {active.dtype}")
        self.total += active.reshape(self.n_layers, -1).sum(1, dtype=torch.int64).to(self.total.device)
        self.count += active[0].numel()

    def compute(self) -> Tensor:
        """The mean L0 of each layer, `(L,)` float64; NaN without tokens."""
        return self.total.double() / self.count


class DeadFeatures(ExactMetric):
    """Share of the features that never fire over the tokens seen since the last reset, per layer.

    Over a split this is the share over its N tokens: a short split leaves rare features dead, so compare numbers of
    one split only.

    Args:
        n_layers: layers L.
        n_features: features F per layer.
    """

    higher_is_better = False
    per_layer = True
    fired: Tensor
    count: Tensor

    def __init__(self, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.n_layers, self.n_features = n_layers, n_features
        self.add_state("fired", torch.zeros(n_layers, n_features, dtype=torch.uint8), dist_reduce_fx="max")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, fired: Tensor, n_tokens: int) -> None:
        """Take in one batch.

        Args:
            fired: `(L, F)` bool: the features with a non-zero code on any of the batch's tokens, as `Codes.fired()`.
            n_tokens: how many tokens these are.

        Raises:
            UserError: if the shape does not fit.
        """
        if fired.shape != self.fired.shape:
            raise UserError(f"DeadFeatures: fired must be {tuple(self.fired.shape)}, got {tuple(fired.shape)}")
        self.fired |= (fired != 0).to(self.fired)
        self.count += n_tokens

    def compute(self) -> Tensor:
        """The dead share of each layer, `(L,)` float64; NaN without tokens."""
        share = 1 - self.fired.sum(1, dtype=torch.int64).double() / self.n_features
        return torch.where(self.count > 0, share, torch.nan)

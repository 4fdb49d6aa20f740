"""ReLU: what is positive."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clt_lightning.transcoder.activations.base import Activation
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen, choose_above


class ReLU(Activation):
    """max(pre, 0). Sparsity comes from the loss (L1 or tanh)."""

    scope = "feature"

    def select(self, pre: Float[Tensor, "tokens features"], layer: int) -> Pairs | Bool[Tensor, "tokens features"]:
        return pre > 0

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_above(screen, screen.x.new_zeros(()))

    def values(
        self,
        pre: Float[Tensor, " pairs"] | Float[Tensor, "tokens features"],
        features: Int[Tensor, " pairs"] | None,
        layer: int,
    ) -> Float[Tensor, " pairs"] | Float[Tensor, "tokens features"]:
        return torch.relu(pre)

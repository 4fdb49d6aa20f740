"""TopK: the k largest of each token."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.core.arguments import whole
from clt_lightning.transcoder.activations.base import Activation
from clt_lightning.transcoder.activations.exchange import Exchange
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen, choose_top
from clt_lightning.transcoder.top import top_indices


class TopK(Activation):
    """The k largest positive pre-activations of each token (ReLU-Top-k; Gao et al. 2024).

    Negative pre-activations never pass: a token with fewer than k positive ones has fewer than k codes.

    Args:
        k: number of features a token may use in each layer. Larger than the dictionary means all of it.
    """

    scope = "token"

    def __init__(self, k: int = 64) -> None:
        super().__init__()
        self.k = whole(f"{type(self).__name__}: k", k, 1)

    @property
    def most_active(self) -> int | None:
        return self.k

    def select(self, pre: Float[Tensor, "tokens features"], layer: int) -> Pairs:
        k = min(self.k, pre.shape[1])
        return Pairs.rectangular(top_indices(pre, k), pre.shape[1])

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_top(screen, min(self.k, screen.rough.shape[1]))

    def select_part(self, pre: Float[Tensor, "tokens width"], layer: int, exchange: Exchange) -> Pairs:
        return exchange.top(pre, self.k)

    def choose_part(self, screen: Screen, layer: int, exchange: Exchange) -> Chosen | None:
        return exchange.screen_top(screen, self.k)

    def values(
        self,
        pre: Float[Tensor, " pairs"] | Float[Tensor, "tokens features"],
        features: Int[Tensor, " pairs"] | None,
        layer: int,
    ) -> Float[Tensor, " pairs"] | Float[Tensor, "tokens features"]:
        return torch.relu(pre)

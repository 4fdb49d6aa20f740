"""AbsTopK: the k largest of each token by absolute value."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.transcoder.activations.exchange import Exchange
from clt_lightning.transcoder.activations.topk import TopK
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen, choose_top


class AbsTopK(TopK):
    """The k largest pre-activations of each token by absolute value; the sign is kept.

    Args:
        k: number of features a token uses in each layer. Larger than the dictionary means all of it.
    """

    scope = "token"
    signed = True

    def select(self, pre: Float[Tensor, "tokens features"], layer: int) -> Pairs:
        return super().select(pre.abs(), layer)

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_top(screen, min(self.k, screen.rough.shape[1]), magnitude=True)

    def select_part(self, pre: Float[Tensor, "tokens width"], layer: int, exchange: Exchange) -> Pairs:
        return exchange.top(pre.abs(), self.k, floor=-1.0)

    def choose_part(self, screen: Screen, layer: int, exchange: Exchange) -> Chosen | None:
        return exchange.screen_top(screen, self.k, magnitude=True)

    def values(
        self,
        pre: Float[Tensor, " pairs"] | Float[Tensor, "tokens features"],
        features: Int[Tensor, " pairs"] | None,
        layer: int,
    ) -> Float[Tensor, " pairs"] | Float[Tensor, "tokens features"]:
        return pre

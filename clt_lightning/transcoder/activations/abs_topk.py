"""AbsTopK: the k largest of each token by absolute value."""

from __future__ import annotations

from torch import Tensor

from clt_lightning.transcoder.activations.topk import TopK
from clt_lightning.transcoder.codes import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen, choose_top


class AbsTopK(TopK):
    """The k largest pre-activations of each token by absolute value; the sign is kept.

    Args:
        k: number of features a token uses in each layer. Larger than the dictionary means all of it.
    """

    def select(self, pre: Tensor, layer: int) -> Pairs:
        return super().select(pre.abs(), layer)

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_top(screen, min(self.k, screen.rough.shape[1]), magnitude=True)

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        return pre

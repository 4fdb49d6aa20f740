"""What the codes look like: how many features fire for a token, how many never do, how often and how strongly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.metrics.base import ExactMetric, MeanPerLayer, check_shape


class L0(MeanPerLayer):
    """Mean number of non-zero codes per token, per layer.

    Args:
        n_layers: layers L.
    """

    dtype_of_sums = torch.int64

    def update(self, active: Num[Tensor, "layers ..."]) -> None:
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

    def update(self, fired: Shaped[Tensor, "layers features"], n_tokens: int) -> None:
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

    def compute(self) -> Float[Tensor, " layers"]:
        """The dead share of each layer, `(L,)` float64; NaN without tokens."""
        share = 1 - self.fired.sum(1, dtype=torch.int64).double() / self.n_features
        return torch.where(self.count > 0, share, torch.nan)


class CodeHistograms(ExactMetric):
    """How often each feature fires, and how large the codes are.

    Args:
        n_layers: layers L.
        n_features: features F per layer.
    """

    #: bin b holds codes with `b <= BINS_PER_OCTAVE * (log2 |z| + OFFSET) < b + 1`, the ends what lies beyond
    BINS, BINS_PER_OCTAVE, OFFSET = 64, 4, 12
    fired: Tensor
    magnitudes: Tensor
    tokens: Tensor

    def __init__(self, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.n_layers, self.n_features = n_layers, n_features
        self.add_state("fired", torch.zeros(n_layers, n_features, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("magnitudes", torch.zeros(n_layers, self.BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @classmethod
    def edges(cls) -> list[float]:
        """The bins' `BINS + 1` edges, as log2 of the magnitude."""
        return [b / cls.BINS_PER_OCTAVE - cls.OFFSET for b in range(cls.BINS + 1)]

    def update(self, layers: Sequence[tuple[Int[Tensor, " pairs"], Float[Tensor, " pairs"]]], n_tokens: int) -> None:
        """Take in one batch.

        Args:
            layers: a layer's features and codes, both `(pairs,)`: as `Codes.layer(l)` gives them; zeros do not count.
            n_tokens: how many tokens these are.

        Raises:
            UserError: if the number of layers does not fit.
        """
        if len(layers) != self.n_layers:
            raise UserError(f"CodeHistograms: expected codes of {self.n_layers} layers, got {len(layers)}")
        for layer, (features, values) in enumerate(layers):
            active = values.detach() != 0
            size = values.detach()[active].abs().double()
            bins = (self.BINS_PER_OCTAVE * (size.log2() + self.OFFSET)).floor().clamp(0, self.BINS - 1).long()
            for counts, found in ((self.fired, features[active]), (self.magnitudes, bins)):
                counts[layer] += torch.bincount(found.to(counts.device), minlength=counts.shape[1])
        self.tokens += n_tokens

    def compute(self) -> tuple[Float[Tensor, "layers features"], Int[Tensor, "layers bins"]]:
        """`(L, F)` float64 share of the tokens on which each feature fired, and `(L, BINS)` int64 counts of codes."""
        return self.fired.double() / self.tokens.clamp(min=1), self.magnitudes

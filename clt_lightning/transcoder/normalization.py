"""Per-layer scales of inputs and outputs, estimated from data.

Scales are powers of two. That costs nothing (what matters is the order of magnitude) and makes folding them into the
weights exact: a folded transcoder gives the same codes to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class ActivationStatistics:
    """First and second moments of a layer's inputs and outputs.

    Attributes:
        x_mean: `(layers, d_in)`.
        x_norm: `(layers,)` mean Euclidean norm of a token's x.
        y_mean: `(layers, d_out)`.
        y_var: `(layers,)` total variance of y: mean over tokens of `||y - y_mean||^2`.
    """

    x_mean: Float[Tensor, "layers d_in"]
    x_norm: Float[Tensor, " layers"]
    y_mean: Float[Tensor, "layers d_out"]
    y_var: Float[Tensor, " layers"]


class StatisticsAccumulator:
    """Sums over tokens in float64, so that any batching gives the same statistics.

    Args:
        n_layers: number of layers.
        d_model: width of x.
        device: where the sums live.
        d_out: width of y; None: that of x.
    """

    def __init__(
        self, n_layers: int, d_model: int, device: torch.device | str = "cpu", d_out: int | None = None
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.n = zeros(1)
        self.x_sum, self.x_norm_sum = zeros(n_layers, d_model), zeros(n_layers)
        self.y_sum, self.y_square_sum = zeros(n_layers, d_model if d_out is None else d_out), zeros(n_layers)

    def update(self, x: Float[Tensor, "layers tokens d_in"], y: Float[Tensor, "layers tokens d_out"]) -> None:
        """Adds tokens: `x` and `y` are `(layers, tokens, d_in)` and `(layers, tokens, d_out)`."""
        if x.dim() != 3 or y.dim() != 3 or x.shape[:2] != y.shape[:2]:
            raise UserError(f"x and y are (layers, tokens, width), got {tuple(x.shape)} and {tuple(y.shape)}")
        self.n += x.shape[1]
        for layer, (x_l, y_l) in enumerate(zip(x, y)):
            x64, y64 = x_l.double(), y_l.double()
            self.x_sum[layer] += x64.sum(0)
            self.x_norm_sum[layer] += x64.norm(dim=1).sum()
            self.y_sum[layer] += y64.sum(0)
            self.y_square_sum[layer] += y64.square().sum()

    def sums(self) -> list[Float[Tensor, "*_"]]:
        """The sums, for an all-reduce in place over processes."""
        return [self.n, self.x_sum, self.x_norm_sum, self.y_sum, self.y_square_sum]

    def result(self) -> ActivationStatistics:
        """The statistics of all tokens seen.

        Raises:
            UserError: no token was seen, or a sum is not finite (names the layer).
        """
        if self.n.item() == 0:
            raise UserError("no tokens to estimate the normalisation from: is the training split empty?")
        for name, total in (("inputs x", self.x_norm_sum), ("outputs y", self.y_square_sum)):
            bad = (~total.isfinite()).nonzero().flatten().tolist()
            if bad:
                raise UserError(
                    f"the {name} of layer {bad[0]} hold NaN or infinite values: check the backbone's weights"
                )
        y_mean = self.y_sum / self.n
        y_var = self.y_square_sum / self.n - y_mean.square().sum(1)
        return ActivationStatistics(self.x_sum / self.n, self.x_norm_sum / self.n, y_mean, y_var.clamp_min(0))


def standardise(
    x: Float[Tensor, "... d"], eps: float = 1e-5
) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... 1"], Float[Tensor, "... 1"]]:
    """Each token less its mean over channels, divided by its standard deviation (plus eps); and these two.

    Args:
        x: `(..., d)`.
        eps: keeps a constant token finite.

    Returns:
        `(..., d)`, and mean and divisor, `(..., 1)` each.
    """
    mean = x.mean(-1, keepdim=True)
    scale = x.std(-1, keepdim=True, correction=0) + eps
    return (x - mean) / scale, mean, scale


def power_of_two(value: float) -> float:
    """The power of two nearest to a positive value on the log scale; 1 for 0."""
    return 2.0 ** round(math.log2(value)) if value > 0 else 1.0


def input_scales(statistics: ActivationStatistics) -> Float[Tensor, " layers"]:
    """`(layers,)` factors that bring the mean norm of x to about sqrt(d_model)."""
    d = statistics.x_mean.shape[1]
    return torch.tensor([power_of_two(math.sqrt(d) / n if n > 0 else 0.0) for n in statistics.x_norm.tolist()])


def output_scales(statistics: ActivationStatistics) -> Float[Tensor, " layers"]:
    """`(layers,)` factors s such that `(y - y_mean) / s` has about unit variance a dimension."""
    d = statistics.y_mean.shape[1]
    return torch.tensor([power_of_two(math.sqrt(v / d)) for v in statistics.y_var.tolist()])

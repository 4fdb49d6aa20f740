"""JumpReLU: what lies above a threshold that each feature learns."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clt_lightning.core.arguments import number
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.activations.base import Activation
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen, choose_above


class _Jump(torch.autograd.Function):
    """`pre * [pre > threshold]` with the rectangle-kernel estimate of the threshold's gradient."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        pre, threshold = ctx.saved_tensors
        window = ((pre - threshold).abs() < ctx.bandwidth / 2).to(grad.dtype)
        return grad * (pre > threshold), -grad * threshold * window / ctx.bandwidth, None


class JumpReLU(Activation):
    """Codes are the pre-activations above a threshold that each feature learns (Rajamanoharan et al. 2024).

    The threshold's gradient is the straight-through estimate with a rectangle kernel; it needs the code gradient also
    of features just below their threshold, so these are selected as pairs with code 0. The learned threshold is the
    same in training and evaluation.

    Args:
        threshold: initial threshold of every feature, in units of the pre-activation. Must be positive.
        bandwidth: width of the kernel around the threshold, in the same units.
    """

    scope = "feature"
    log_threshold: nn.Parameter

    def __init__(self, threshold: float = 0.03, bandwidth: float = 0.05) -> None:
        super().__init__()
        self.initial_threshold = number("JumpReLU: threshold", threshold)
        self.bandwidth = number("JumpReLU: bandwidth", bandwidth)
        for name, value in (("threshold", threshold), ("bandwidth", bandwidth)):
            if not value > 0:
                raise UserError(f"JumpReLU: {name} must be positive, got {value}")

    def build(self, n_layers: int, n_features: int) -> None:
        self.log_threshold = nn.Parameter(torch.full((n_layers, n_features), math.log(self.initial_threshold)))

    @property
    def threshold(self) -> Float[Tensor, "layers features"]:
        """`(layers, F)`, positive."""
        return self.log_threshold.exp()

    def thresholds(self) -> Float[Tensor, "layers features"] | float:
        return self.threshold

    def select(self, pre: Float[Tensor, "tokens features"], layer: int) -> Pairs | Bool[Tensor, "tokens features"]:
        return pre > self._limit(layer, pre.dtype)

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_above(screen, self._limit(layer, screen.x.dtype))

    def _limit(self, layer: int, dtype: torch.dtype) -> Tensor:
        """`(F,)`: what lies above is selected."""
        # The window below the threshold holds codes of 0 that matter to the threshold's gradient only
        margin = self.bandwidth / 2 if self.training else 0.0
        return self.log_threshold[layer].detach().exp().to(dtype) - margin

    def values(
        self,
        pre: Float[Tensor, " pairs"] | Float[Tensor, "tokens features"],
        features: Int[Tensor, " pairs"] | None,
        layer: int,
    ) -> Float[Tensor, " pairs"] | Float[Tensor, "tokens features"]:
        threshold = self.log_threshold[layer].exp().to(pre.dtype)
        threshold = threshold.expand_as(pre) if features is None else threshold[features]
        codes: Tensor = _Jump.apply(pre, threshold, self.bandwidth)
        return codes

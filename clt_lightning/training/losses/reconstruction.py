"""The reconstruction's error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError


class _SquaredErrors(torch.autograd.Function):
    """`sum over tokens of ||y_hat - y||^2` per layer, in one pass each way over tensors as large as the activations."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, y_hat: Tensor) -> Tensor:
        error = y_hat - y
        ctx.save_for_backward(error)
        # a token's norm first: one long sum in fp32 would lose digits
        norms: Tensor = torch.linalg.vector_norm(error, dim=2)
        return norms.square().sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (error,) = ctx.saved_tensors
        d_y_hat = error * (2 * grads[0])[:, None, None]
        return (-d_y_hat if ctx.needs_input_grad[0] else None), (d_y_hat if ctx.needs_input_grad[1] else None)


def normalized_error(y: Tensor, y_hat: Tensor, variance: Tensor) -> Tensor:
    """`(layers,)`: mean over tokens of `||y - y_hat||^2 / variance`, in fp32 or better: the FVU of a layer."""
    error: Tensor = _SquaredErrors.apply(y.to(y_hat.dtype), y_hat) / max(y.shape[1], 1)
    return error / variance.to(error)


def reconstruction_loss(y: Tensor, y_hat: Tensor, variance: Tensor, layer_weights: Sequence[float] | None) -> Tensor:
    """Mean over layers of the normalised squared error.

    Args:
        y: `(layers, tokens, d_model)` targets.
        y_hat: the same shape.
        variance: `(layers,)` total variance of y.
        layer_weights: one weight a layer, rescaled to mean 1.

    Raises:
        UserError: the number of weights is not the number of layers, or they sum to nothing.
    """
    errors = normalized_error(y, y_hat, variance)
    if layer_weights is None:
        return errors.mean()
    weights = errors.new_tensor(list(layer_weights))
    if weights.numel() != errors.numel() or not bool(weights.sum() > 0):
        raise UserError(f"loss.layer_weights needs {errors.numel()} weights with a positive sum, got {layer_weights}")
    return (errors * weights / weights.mean()).mean()

"""Gradients that must be there."""

from __future__ import annotations

from torch import Tensor


def gradient(parameter: Tensor) -> Tensor:
    """What a backward pass has left at a parameter."""
    assert parameter.grad is not None
    return parameter.grad

"""A large batch in chunks of tokens: the memory of one chunk's activations, the gradients of the whole batch.

Every chunk is run forward and backward at once, and its gradients are added up; what autograd sees is a scalar that
holds finished gradients. Costs no second forward, and one more set of gradients while a chunk's are being added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Finished(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        torch._foreach_mul_(ctx.gradients, grads[0])
        return None, None, *ctx.gradients


def add_up(losses: Iterable[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """The sum of losses, each of which is differentiated before the next is computed.

    Args:
        losses: makes scalar losses one after the other; a chunk's graph is freed before the next is asked for.
        parameters: what to differentiate by.

    Returns:
        the scalar sum; its backward hands out the gradients added up so far.
    """
    total: Tensor | None = None
    gradients: list[Tensor] = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        total = loss.detach() if total is None else total + loss.detach()
        if not gradients:
            gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters)]
        else:
            pairs = [(have, g) for have, g in zip(gradients, found) if g is not None]
            torch._foreach_add_([have for have, _ in pairs], [g for _, g in pairs])
        del found, loss
    assert total is not None, "there is at least one chunk"
    summed: Tensor = _Finished.apply(total, gradients, *parameters)
    return summed

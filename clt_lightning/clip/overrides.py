"""Putting something else in the place of a block's MLP branch, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError

BranchFn = Callable[[int, Tensor, Callable[[], Tensor]], Tensor]
"""`fn(layer, x, compute_y) -> y`: x and y are `(images, positions, d_model)`; `compute_y()` is the branch's own y."""


class BranchOverrides:
    """Routes the MLP branches `ls_2(mlp(x))` of residual blocks through functions.

    While a block has an override, its `mlp.forward` is shadowed by an instance attribute and its `ls_2.forward` passes
    through. A forward hook could not do that: it comes after the MLP was paid for. Hooks that others set on `ln_2`,
    `mlp` and `ls_2` keep firing, so that a capture sees the branch's output as it is added.

    Args:
        blocks: residual blocks with `mlp` and `ls_2`.
        batch_first: whether the blocks run on `(images, positions, d_model)`; otherwise on `(positions, images, ...)`.
    """

    def __init__(self, blocks: Sequence[Any], batch_first: bool = True) -> None:
        self._blocks = blocks
        self._batch_first = batch_first
        self._stacks: dict[int, list[tuple[object, BranchFn]]] = {}
        self.caller_autocast: tuple[bool, torch.dtype] | None = None

    @contextmanager
    def active(self, fn: BranchFn, layers: Sequence[int]) -> Iterator[None]:
        """Route the branches of `layers` through `fn`; of nested overrides the innermost wins, layer by layer."""
        token = object()
        entered: list[int] = []
        try:
            for layer in layers:
                self._push(layer, (token, fn))
                entered.append(layer)
            yield
        finally:
            for layer in entered:
                self._drop(layer, token)

    def _push(self, layer: int, entry: tuple[object, BranchFn]) -> None:
        stack = self._stacks.setdefault(layer, [])
        stack.append(entry)
        if len(stack) == 1:
            block = self._blocks[layer]
            block.mlp.forward = partial(self._branch, layer)
            block.ls_2.forward = _pass_through

    def _drop(self, layer: int, token: object) -> None:
        # by token, not from the top: contexts that end out of order take only their own entry away
        stack = [entry for entry in self._stacks[layer] if entry[0] is not token]
        if stack:
            self._stacks[layer] = stack
            return
        del self._stacks[layer]
        block = self._blocks[layer]
        del block.mlp.forward
        del block.ls_2.forward

    def _branch(self, layer: int, x: Tensor) -> Tensor:
        block = self._blocks[layer]
        device_type = x.device.type

        def compute_y() -> Tensor:
            with torch.autocast(device_type, enabled=False):
                y = type(block.ls_2).forward(block.ls_2, type(block.mlp).forward(block.mlp, x))
            return y if self._batch_first else y.transpose(0, 1)

        inputs = x if self._batch_first else x.transpose(0, 1)
        fn = self._stacks[layer][-1][1]
        # the backbone runs outside the caller's autocast; the caller's function runs as the caller set it up
        enabled, dtype = self.caller_autocast or (False, None)
        with torch.autocast(device_type, dtype=dtype, enabled=enabled):
            y = fn(layer, inputs, compute_y)
        if y.shape != inputs.shape:
            raise UserError(
                f"the replacement of layer {layer}'s MLP must return (images, positions, d_model) = "
                f"{tuple(inputs.shape)}, got {tuple(y.shape)}"
            )
        y = y.to(x.dtype)
        return y if self._batch_first else y.transpose(0, 1)


def _pass_through(x: Tensor) -> Tensor:
    return x

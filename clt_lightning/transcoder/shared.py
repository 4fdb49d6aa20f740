"""One gradient of a weight that many products of a step write, block by block, into memory that is kept."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clt_lightning.transcoder.buffers import GradientBuffers


class _Blocks:
    """The gradient under way. A graph task that ended early leaves nothing to the next one."""

    def __init__(self, weight: Tensor, gradients: GradientBuffers, key: Hashable) -> None:
        self.weight, self.gradients, self.key = weight, gradients, key
        self.buffer: Tensor | None = None
        self.written: set[int] = set()
        self.task = -1

    def open(self) -> Tensor:
        task = torch._C._current_graph_task_id()
        if self.buffer is None or task != self.task:
            self.buffer, self.task = self.gradients.take(self.key, self.weight), task
            self.written.clear()
        return self.buffer

    def close(self) -> Tensor:
        buffer = self.open()
        for block in set(range(self.weight.shape[1] if self.weight.dim() == 3 else 1)) - self.written:
            (buffer[:, block] if buffer.dim() == 3 else buffer).zero_()
        self.buffer = None
        self.written.clear()
        return buffer


class _Handle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, blocks: _Blocks) -> Tensor:
        ctx.blocks = blocks
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.blocks.close(), None


class Shared:
    """A weight, and the place for its gradient.

    Autograd would add up the gradients of all uses, each as large as the weight and in fresh memory. Here a use is a
    function of `handle`, a scalar that stands for the weight in the graph, and writes its part in its backward; when
    all have, the whole goes to the weight.

    Args:
        weight: `(F, d)`, or `(F, blocks, d)`.
        gradients: memory for the gradient.
        key: the weight's name there.

    Attributes:
        weight: detached.
        handle: scalar; needs a gradient if the weight does.
    """

    def __init__(self, weight: Tensor, gradients: GradientBuffers | None = None, key: Hashable = "W") -> None:
        self.weight = weight.detach()
        self._blocks = _Blocks(self.weight, gradients or GradientBuffers(), key)
        self.handle: Tensor = _Handle.apply(weight, self._blocks)

    def block(self, number: int = 0) -> tuple[Tensor, bool]:
        """Where to write a block's gradient `(F, d)`, and whether to add to what is there; for a backward to call."""
        buffer, written = self._blocks.open(), self._blocks.written
        add = number in written
        written.add(number)
        return (buffer[:, number] if buffer.dim() == 3 else buffer), add

    def range(self, start: int, stop: int) -> tuple[Tensor, bool]:
        """The same for the blocks `start..stop - 1` together, `(F, blocks, d)`; all are written, or none."""
        buffer, written = self._blocks.open(), self._blocks.written
        add = start in written
        if any((number in written) != add for number in range(start, stop)):
            for number in set(range(start, stop)) - written:
                buffer[:, number].zero_()
            add = True
        written.update(range(start, stop))
        return buffer[:, start:stop], add

    def nothing(self) -> Tensor:
        """What a use gives as the gradient of `handle`."""
        return self.handle.new_zeros(())

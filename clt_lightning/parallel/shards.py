"""Who keeps which features, and the few things that the processes of a feature group tell each other.

Plain collectives over two process groups of a 2-D `DeviceMesh`, not DTensor: the forward needs three exchanges alone
(candidates of the top-k, partial reconstructions, scalar penalties), ragged codes have no DTensor form, and DTensor
would put redistributions behind every operation of kernels that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class Shards:
    """One process's place in a feature group. Processes of a group see the same batches.

    Attributes:
        group: the process group; its rank r keeps the features `r * F / R .. (r + 1) * F / R - 1` of every layer.
        rank: r, this process's number in the group.
        size: R, processes in the group.
        replica: number of this group among those that see other batches; group 0 writes the files.
    """

    group: Any
    rank: int
    size: int
    replica: int = 0

    @classmethod
    def of_group(cls, group: Any = None, replica: int = 0) -> Shards:
        """The place of this process in a group of `torch.distributed` (None: all processes)."""
        return cls(group, dist.get_rank(group), dist.get_world_size(group), replica)

    def width(self, n_features: int) -> int:
        """F / R.

        Raises:
            UserError: F is no multiple of R.
        """
        if n_features % self.size:
            raise UserError(
                f"model.transcoder.n_features={n_features} cannot be divided over model.parallel.feature={self.size} "
                f"processes: take a multiple of {self.size}"
            )
        return n_features // self.size

    def all_gather(self, tensor: Tensor) -> Tensor:
        """`(R, *shape)`: the tensors of all processes, which must be of one shape."""
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self.group)
        return torch.stack(parts)

    def reduce_(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """All-reduce in place, without gradients."""
        dist.all_reduce(tensor, op=op, group=self.group)
        return tensor

    def sum(self, part: Tensor) -> Tensor:
        """The sum over the group; its backward hands the gradient on as it is.

        What follows is computed alike on every process, so each holds the whole gradient of the sum already, and with
        it the gradient of its own part.
        """
        total: Tensor = _Sum.apply(part, self)
        return total

    def spread(self, shared: Tensor) -> Tensor:
        """What all processes hold alike, for use by each one's own features; its backward adds up their gradients."""
        return _Spread.apply(shared, self) if shared.requires_grad else shared


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, shards: Shards) -> Tensor:
        return shards.reduce_(part.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.shards.reduce_(grads[0].clone(memory_format=torch.contiguous_format)), None

"""State of a sharded transcoder and its optimizer, to and from the form that one process has.

Checkpoints are always in that form, so that they go from any number of processes to any other and to `transcoder/`.
The first process gathers them shard by shard into its main memory, which must hold the whole state (12 bytes a
parameter with Adam).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.parallel.shards import Shards

if TYPE_CHECKING:
    from clt_lightning.parallel.transcoder import ShardedTranscoder


def _memory_order(tensor: Tensor) -> list[int]:
    """The dimensions from the slowest to the fastest in memory."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def gather(local: Tensor, dim: int, shards: Shards) -> Tensor | None:
    """A divided tensor as one, in the main memory of the group's first process; None on the others.

    Args:
        local: this process's part; its order of dimensions in memory is kept.
        dim: the divided dimension.
        shards: the group.
    """
    local = local.detach()
    order = _memory_order(local)
    part = local.permute(order).contiguous()
    if shards.rank:
        dist.send(part, _global_rank(shards, 0), group=shards.group)
        return None
    at, width = order.index(dim), local.shape[dim]
    shape = list(part.shape)
    shape[at] = width * shards.size
    whole = torch.empty(shape, dtype=part.dtype)
    whole.narrow(at, 0, width).copy_(part)
    for source in range(1, shards.size):
        received = torch.empty_like(part)
        dist.recv(received, _global_rank(shards, source), group=shards.group)
        whole.narrow(at, source * width, width).copy_(received)
    return whole.permute([order.index(d) for d in range(local.dim())])


def _global_rank(shards: Shards, rank: int) -> int:
    return rank if shards.group is None else dist.get_global_rank(shards.group, rank)


def part_of(whole: Tensor, like: Tensor, dim: int, shards: Shards, name: str) -> Tensor:
    """This process's part of a whole tensor, with the strides and the device of `like`.

    Raises:
        UserError: the whole has another shape.
    """
    shape = list(like.shape)
    shape[dim] *= shards.size
    if list(whole.shape) != shape:
        raise UserError(f"the checkpoint's {name} is of shape {tuple(whole.shape)}, this run's is {tuple(shape)}")
    part = torch.empty_like(like, dtype=whole.dtype)
    return part.copy_(whole.narrow(dim, shards.rank * like.shape[dim], like.shape[dim]))


def gather_module(clt: ShardedTranscoder, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    """A state dict in the form of one process, on the first process of group 0; None on all others.

    Args:
        clt: the transcoder.
        tensors: a state dict that contains the transcoder's.
        prefix: the transcoder's name in it, with a dot.
    """
    if clt.shards.replica:
        return None
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        dim = clt.feature_dim(name[len(prefix) :]) if name.startswith(prefix) else None
        found = tensor.detach().cpu() if dim is None else gather(tensor, dim, clt.shards)
        if found is not None:
            out[name] = found
    return out if clt.shards.rank == 0 else None


def cut_module(clt: ShardedTranscoder, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """This process's part of a state dict in the form of one process; arguments as of `gather_module`."""
    own = clt.state_dict()
    out = dict(tensors)
    for name, like in own.items():
        dim = clt.feature_dim(name)
        if dim is not None and prefix + name in out:
            out[prefix + name] = part_of(out[prefix + name], like, dim, clt.shards, name)
    return out


def _state_dim(value: Any, shape: torch.Size, dim: int | None) -> int | None:
    """The divided dimension of one entry of an optimizer's state: like its parameter's, or a number per row."""
    if dim is None or not isinstance(value, Tensor) or value.dim() == 0:
        return None
    if value.shape == shape:
        return dim
    return 0 if value.dim() == 1 and value.shape[0] == shape[dim] else None


def gather_optimizer(clt: ShardedTranscoder, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The optimizer's state in the form of one process, on the first process of group 0; None on all others."""
    if clt.shards.replica:
        return None
    content = optimizer.state_dict()
    gathered: dict[int, dict[str, Any]] = {}
    for index, (parameter, dim) in enumerate(_of(optimizer, clt)):
        entries = content["state"].get(index)
        if entries is None:
            continue
        gathered[index] = {}
        for key, value in entries.items():
            along = _state_dim(value, parameter.shape, dim)
            gathered[index][key] = value if along is None else gather(value, along, clt.shards)
    return {**content, "state": gathered} if clt.shards.rank == 0 else None


def cut_optimizer(clt: ShardedTranscoder, optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    """This process's part of an optimizer's state in the form of one process."""
    out: dict[int, dict[str, Any]] = {}
    for index, (parameter, dim) in enumerate(_of(optimizer, clt)):
        entries = content["state"].get(index)
        if entries is None:
            continue
        whole = list(parameter.shape)
        if dim is not None:
            whole[dim] *= clt.shards.size
        out[index] = {}
        for key, value in entries.items():
            along = _state_dim(value, torch.Size(whole), dim)
            if along is not None:
                rows = parameter if value.dim() == parameter.dim() else parameter.new_empty(parameter.shape[dim or 0])
                value = part_of(value, rows.detach(), along, clt.shards, f"optimizer state {key}")
            out[index][key] = value
    return {**content, "state": out}


def _of(optimizer: torch.optim.Optimizer, clt: ShardedTranscoder) -> list[tuple[Tensor, int | None]]:
    """The optimizer's parameters in the order of its state, with the dimension along which each is divided."""
    dims = {id(parameter): dim for parameter, dim in clt.divided()}
    return [(p, dims.get(id(p))) for group in optimizer.param_groups for p in group["params"]]

"""Which part of the data is this process's, and how much of an epoch is read: asked of Lightning, then of torch."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from clt_lightning.core.errors import UserError


def find_place(trainer: Any | None, rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """This process's number and how many there are.

    Args:
        trainer: the Lightning trainer, if there is one.
        rank, world: what was set by hand; wins.

    Raises:
        UserError: `rank` does not fit `world`.
    """
    if rank is not None or world is not None:
        rank, world = rank or 0, world or 1
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} does not fit world_size {world}: it must be in 0..{world - 1}")
        return rank, world
    if trainer is not None:
        # a mesh strategy counts its data-parallel groups here, not its processes
        told = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
        if told:
            return int(told["rank"]), int(told["num_replicas"])
        return int(trainer.global_rank), int(trainer.world_size)
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def find_local_place(trainer: Any | None) -> tuple[int, int]:
    """This process's number among those of its machine, and how many these are.

    Args:
        trainer: the Lightning trainer, if there is one.
    """
    if trainer is not None:
        return int(trainer.local_rank), max(1, int(trainer.num_devices))
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def epoch_limit(trainer: Any | None, batches: int) -> int | None:
    """Batches after which Lightning ends its training epochs (`limit_train_batches`: a number or a share)."""
    limit = None if trainer is None else trainer.limit_train_batches
    if limit is None:
        return None
    return max(1, int(batches * limit)) if isinstance(limit, float) else max(1, min(batches, limit))


def repeats(trainer: Any | None) -> bool:
    """Whether Lightning wants the same batches in every epoch (`overfit_batches`)."""
    return trainer is not None and bool(trainer.overfit_batches)

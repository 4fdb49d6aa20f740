"""Real processes for the tests: a few of them, with gloo, and what they give back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def run(function: Callable[..., Any], folder: Path, processes: int, *args: Any) -> list[Any]:
    """Calls `function(*args)` in so many processes of one group; gives what each returned, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    # not forked from here, where autograd has run
    everything = (processes, folder, function, args)
    start_processes(_enter, args=everything, nprocs=processes, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _enter(rank: int, world: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    # a Lightning Trainer in here takes the group as it is, and starts no processes of its own
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    # a file as meeting point: no port to collide with other tests
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()

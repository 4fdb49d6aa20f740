"""Random generators in checkpoints, so that code which draws from them goes on exactly, too."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn

_KEY = "random_states"


def collect() -> dict[str, Any]:
    """States of Python's, NumPy's, torch's CPU generators and this process's CUDA generator, in plain types."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts the generators into these states."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class RandomState(pl.Callback):
    """Saves the generators of every process and puts them back before the first step of a resumed run.

    The module and the data draw from generators of their own, as functions of seed and step; this is for all the rest.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states: list[Any] = [collect()]
        if trainer.world_size > 1:
            mine, states = states[0], [None] * trainer.world_size
            dist.all_gather_object(states, mine)
        checkpoint[_KEY] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint.get(_KEY, [])
        if states and len(states) != trainer.world_size:
            rank_zero_warn(f"random states of {len(states)} processes are not restored on {trainer.world_size}")
            return
        self._loaded = states[trainer.global_rank] if states else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._loaded is not None:
            restore(self._loaded)
            self._loaded = None

"""How fast training runs and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

_GIB = 2**30


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: `rss` of this process and, on a GPU, `cuda` as its tensors took it."""
    peaks = {"rss": peak_rss() / _GIB}
    if device.type == "cuda":
        peaks["cuda"] = torch.cuda.max_memory_allocated(device) / _GIB
    return peaks


@dataclass
class _Count:
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0

    def add(self, other: _Count) -> None:
        self.seconds += other.seconds
        self.steps += other.steps
        self.tokens += other.tokens

    @property
    def step_time(self) -> float:
        return self.seconds / self.steps

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class Throughput(pl.Callback):
    """Logs speed and memory every `trainer.log_every_n_steps` steps, and prints a summary at the end of training.

    Tags: `train/tokens_per_second` (over all processes), `train/step_time` (seconds), `train/memory/rss` and
    `train/memory/cuda` (peak so far in GiB, process 0). A step's time includes waiting for data and leaves out
    validation; the first step, which allocates and compiles, is in none of the numbers. Tokens are counted from the
    `tokens` (of one process) that `training_step` returns beside its loss.
    """

    def __init__(self) -> None:
        self._start_anew(step=0)

    def _start_anew(self, step: int) -> None:
        self._step = step
        self._mark, self._paused = 0.0, True
        self._first: _Count | None = None
        self._window, self._total = _Count(), _Count()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start_anew(trainer.global_step)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._paused:
            self._mark, self._paused = time.monotonic(), False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps, self._step = trainer.global_step - self._step, trainer.global_step
        every = int(getattr(trainer, "log_every_n_steps", 0))
        boundary = steps > 0 and every > 0 and self._step % every == 0
        # The clock of a GPU is only read where it must be: waiting for it every step would stall the pipeline.
        seconds = self._lap(pl_module.device, wait=boundary or self._first is None)
        tokens = int(outputs.get("tokens", 0)) if isinstance(outputs, Mapping) else 0
        self._window.add(_Count(seconds, steps, tokens * trainer.world_size))
        if self._first is None:
            self._first, self._window = self._window, _Count()
        elif boundary:
            self._log(pl_module)
            self._total.add(self._window)
            self._window = _Count()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause(pl_module.device)
        self._total.add(self._window)
        count = self._total if self._total.steps else self._first
        if count is None or not count.steps or not trainer.is_global_zero:
            return
        peaks = ", ".join(f"{kind} {gib:.2f} GiB" for kind, gib in memory(pl_module.device).items())
        speed = f"{count.tokens_per_second:,.0f} tokens/s, " if count.tokens else ""
        which = "" if trainer.world_size == 1 else f" (process 0 of {trainer.world_size})"
        trainer.print(f"training: {count.step_time:.4g} s a step, {speed}peak memory{which}: {peaks}", flush=True)

    def _log(self, pl_module: pl.LightningModule) -> None:
        if self._window.tokens:
            pl_module.log("train/tokens_per_second", self._window.tokens_per_second, prog_bar=True)
        else:
            rank_zero_warn("train/tokens_per_second is not logged: training_step returns no `tokens`")
        pl_module.log("train/step_time", self._window.step_time)
        for kind, gib in memory(pl_module.device).items():
            pl_module.log(f"train/memory/{kind}", gib)

    def _pause(self, device: torch.device) -> None:
        if not self._paused:
            self._window.seconds += self._lap(device, wait=True)
            self._paused = True

    def _lap(self, device: torch.device, *, wait: bool) -> float:
        if wait and device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        return seconds

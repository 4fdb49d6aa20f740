"""How fast training runs, where its time goes, how far it is, and how much memory it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities import rank_zero_warn

from clt_lightning.core.errors import UserError
from clt_lightning.core.memory import peak_resident
from clt_lightning.core.people import count, duration
from clt_lightning.runs.timing import PARTS, DataWait, StepClock

_GIB = 2**30


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: `rss` of this process, where the system says it, and on a GPU `cuda` of its tensors."""
    peak = peak_resident()
    peaks = {} if peak is None else {"rss": peak / _GIB}
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


def _batches_a_step(trainer: Any) -> int:
    """Different batches that a step has: processes that share a transcoder's features share the batch as well."""
    told = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
    return int(told["num_replicas"]) if told else 1


class Throughput(pl.Callback):
    """Logs speed, the parts of a step and memory every `trainer.log_every_n_steps` steps, and says how far the run is.

    Tags: `train/tokens` (seen by all processes since the run's first start), `train/tokens_per_second` (over all
    processes), `train/step_time` (seconds), `train/time/<part>` (seconds: `data` waiting for the loader, `clip`,
    `transcoder` forward and backward, `optimizer` with clipping, `other`), `train/memory/rss` and `train/memory/cuda`
    (peak so far in GiB, process 0). A step's time includes waiting for data and leaves out validation; the first step,
    which allocates and compiles, is in none of the numbers. On a GPU the parts are times on the GPU, except `data`, and
    no step is made to wait for them. Tokens are counted from the `tokens` (of a process) that `training_step` returns.

    Warns once, with what to do, when steps wait for data for more than `starving_share` of their time.

    Args:
        progress_every_seconds: longest time between two lines with step, tokens/s and time left in a log, which has one
            every few per cent as well; null: only those. Without a progress bar: the time between two; null: none.
        starving_share: share of the time, 0..1, from which on the loader counts as the bottleneck.

    Raises:
        UserError: a share outside 0..1, or a time that is not positive.
    """

    def __init__(self, progress_every_seconds: float | None = 600.0, starving_share: float = 0.25) -> None:
        if progress_every_seconds is not None and progress_every_seconds <= 0:
            raise UserError(f"throughput.progress_every_seconds must be positive or null, got {progress_every_seconds}")
        if not 0 < starving_share <= 1:
            raise UserError(f"throughput.starving_share must lie in 0..1, got {starving_share}")
        self.progress_every_seconds = progress_every_seconds
        self.starving_share = starving_share
        self.speaks = True  # a progress bar that says the same takes over
        self._tokens = 0
        self._clock = StepClock()
        self._profiler: Profiler | None = None
        self._start_anew(step=0)

    def _start_anew(self, step: int) -> None:
        self._step = step
        self._mark, self._paused = 0.0, True
        self._first: _Count | None = None
        self._window, self._total = _Count(), _Count()
        self._starved_windows = 0
        self._begin: tuple[float, int] | None = None
        self._said = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Tokens seen so far."""
        return {"tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._tokens = int(state_dict.get("tokens", 0))

    @property
    def tokens_per_second(self) -> float:
        """Of all processes, lately; 0 as long as nothing is known."""
        return (self._window if self._window.steps else self._total).tokens_per_second

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._start_anew(trainer.global_step)
        clock = getattr(pl_module, "clock", None)
        self._clock = clock if isinstance(clock, StepClock) else StepClock()
        self._clock.start(pl_module.device)
        self._profiler = trainer.profiler
        trainer.profiler = DataWait(trainer.profiler, self._clock)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(self, trainer: Any, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._paused:  # the step began when it began to wait for this batch
            self._mark, self._paused = time.monotonic() - self._clock.latest("data"), False

    def on_after_backward(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._clock.end("transcoder")

    def on_before_optimizer_step(self, trainer: Any, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._clock.begin("optimizer")

    def on_train_batch_end(
        self, trainer: Any, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._clock.end("optimizer")
        steps, self._step = trainer.global_step - self._step, trainer.global_step
        every = int(getattr(trainer, "log_every_n_steps", 0))
        boundary = steps > 0 and every > 0 and self._step % every == 0
        # The clock of a GPU is only read where it must be: waiting for it every step would stall the pipeline.
        wait = boundary or self._first is None
        seconds = self._lap(pl_module.device, wait=wait)
        tokens = int(outputs.get("tokens", 0)) if isinstance(outputs, Mapping) else 0
        tokens *= _batches_a_step(trainer)
        self._tokens += tokens
        self._window.add(_Count(seconds, steps, tokens))
        if self._first is None:
            self._first, self._window = self._window, _Count()
            self._clock.take()
            self._begin = time.monotonic(), trainer.global_step
        elif boundary:
            self._log(trainer, pl_module)
            self._total.add(self._window)
            self._window = _Count()
        self._say_how_far(trainer)

    def leave_out(self, device: torch.device) -> None:
        """Leaves what was done since the last step's end out of the next step's time."""
        if not self._paused:
            self._lap(device, wait=True)
            self._paused = True

    def on_validation_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._pause(pl_module.device)

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._pause(pl_module.device)
        self._release(trainer)
        self._total.add(self._window)
        taken = self._total if self._total.steps else self._first
        if taken is None or not taken.steps or not trainer.is_global_zero:
            return
        peaks = ", ".join(f"{kind} {gib:.2f} GiB" for kind, gib in memory(pl_module.device).items()) or "n/a"
        speed = f"{taken.tokens_per_second:,.0f} tokens/s, " if taken.tokens else ""
        which = "" if trainer.world_size == 1 else f" (process 0 of {trainer.world_size})"
        trainer.print(f"training: {taken.step_time:.4g} s per step, {speed}peak memory{which}: {peaks}", flush=True)

    def on_exception(self, trainer: Any, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._release(trainer)

    def _release(self, trainer: Any) -> None:
        self._clock.stop()
        if self._profiler is not None:
            trainer.profiler, self._profiler = self._profiler, None

    def _log(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        window = self._window
        if window.tokens:
            pl_module.log("train/tokens_per_second", window.tokens_per_second, prog_bar=True)
            pl_module.log("train/tokens", float(self._tokens))
        else:
            rank_zero_warn("train/tokens_per_second is not logged: training_step returns no `tokens`")
        pl_module.log("train/step_time", window.step_time)
        taken = self._clock.take()
        parts = {part: taken.get(part, 0.0) / window.steps for part in PARTS}
        # a GPU works while the host waits for data: then the parts overlap, and nothing is left
        parts["other"] = max(0.0, window.step_time - sum(parts.values()))
        for part, seconds in parts.items():
            pl_module.log(f"train/time/{part}", seconds)
        for kind, gib in memory(pl_module.device).items():
            pl_module.log(f"train/memory/{kind}", gib)
        self._look_at_data(trainer, parts)

    def _look_at_data(self, trainer: pl.Trainer, parts: dict[str, float]) -> None:
        whole = self._window.step_time
        working = parts["clip"] + parts["transcoder"] + parts["optimizer"]
        # waiting that a busy GPU hides costs nothing
        starved = min(parts["data"], max(0.0, whole - working))
        self._starved_windows = self._starved_windows + 1 if starved > self.starving_share * whole else 0
        if self._starved_windows != 2:  # one window may hold the start of an epoch
            return
        workers = getattr(getattr(trainer, "datamodule", None), "num_workers", None)
        now = "" if workers is None else f" (now {workers}; this machine has {os.cpu_count()} cores)"
        rank_zero_warn(
            f"the data loader is the bottleneck: of {whole:.3g} s per step, {starved:.3g} s ({starved / whole:.0%}) "
            f"are spent waiting for data, {parts['clip']:.3g} s in the CLIP, {parts['transcoder']:.3g} s in the "
            f"transcoder and {parts['optimizer']:.3g} s in the optimizer. Raise data.init_args.num_workers{now}, put "
            "the shards on a faster disk, or store smaller images"
        )

    def _say_how_far(self, trainer: Any) -> None:
        every, now = self.progress_every_seconds, time.monotonic()
        if (
            not self.speaks
            or every is None
            or self._begin is None
            or now - self._said < every
            or not trainer.is_global_zero
        ):
            return
        self._said = now
        step, limit = trainer.global_step, trainer.max_steps
        since, first = self._begin
        words = [f"step {step:,}" + (f" of {limit:,} ({step / limit:.1%})" if limit > 0 else "")]
        if self._tokens:
            words.append(f"{count(self._tokens)} tokens")
            words.append(f"{count(self.tokens_per_second)} tokens/s")
        if limit > 0 and step > first:  # with validations and checkpoints, as they were so far
            words.append(f"about {duration((now - since) / (step - first) * (limit - step))} left")
        trainer.print(", ".join(words), flush=True)

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

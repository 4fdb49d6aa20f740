"""Stops a run on a signal: after a whole step, its checkpoint written, and asked of the scheduler to go on later."""

from __future__ import annotations

import signal as os_signal
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from clt_lightning.callbacks.checkpoints import Checkpoints
from clt_lightning.core.errors import UserError
from clt_lightning.runs.requeue import SignalFlag, Stopped, requeue, slurm_job


class Requeue(pl.Callback):
    """On a signal, writes `last.ckpt` after the running step, requeues the Slurm job, and ends with exit code 75.

    Schedulers send a signal some time before they end a job (`sbatch --signal=USR1@300`). All processes agree on the
    step at which they stop, by one number that they exchange. Outside Slurm the run ends with 75 all the same; the same
    command with `--ckpt_path last` goes on with the very next step.

    Args:
        signal: name of the signal, such as `SIGUSR1` or `SIGUSR2`; null turns this off.
        every_n_steps: optimizer steps between two exchanges of processes; with one process every step is looked at.
        requeue: whether process 0 calls `scontrol requeue` under Slurm.

    Raises:
        UserError: an unknown signal, or `every_n_steps` below 1.
    """

    def __init__(self, signal: str | None = "SIGUSR1", every_n_steps: int = 1, requeue: bool = True) -> None:
        if every_n_steps < 1:
            raise UserError(f"requeue.every_n_steps must be 1 or more, got {every_n_steps}")
        self._flag = SignalFlag(signal) if signal else None
        self.every_n_steps = every_n_steps
        self.requeue = requeue

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._flag is not None and stage == "fit":
            self._flag.install()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._flag is not None:
            self._flag.restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # once it stops, a second signal must not kill what is being written
        if self._flag is not None and not isinstance(exception, Stopped):
            self._flag.restore()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._flag is None or trainer.fit_loop._should_accumulate():
            return  # gradients of half a step are in no checkpoint
        if trainer.world_size > 1 and trainer.global_step % self.every_n_steps:
            return
        if not self._anyone(trainer, pl_module.device):
            return
        checkpoints = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)), None)
        if checkpoints is None:
            raise UserError("a signal asked the run to stop, but it has no Checkpoints callback to write its state")
        if not checkpoints.write_last_after_step(trainer):
            return  # only the last validation is left: there is nothing to go on with later
        if self._flag.is_main_thread():
            # Slurm ends the job as soon as it has requeued it: these last moments must not look like a crash
            os_signal.signal(os_signal.SIGTERM, os_signal.SIG_IGN)
        if trainer.is_global_zero and self.requeue and (job := slurm_job()):
            requeue(job)
        trainer.strategy.barrier("requeued")  # a scheduler may end all processes once the first one is gone
        raise Stopped(
            f"stopped by {self._flag.signal.name} after step {trainer.global_step}; the state is in "
            f"{checkpoints.last_model_path}. The same command with --ckpt_path last goes on from there"
        )

    def _anyone(self, trainer: pl.Trainer, device: torch.device) -> bool:
        assert self._flag is not None
        if trainer.world_size == 1:
            return self._flag.raised
        told = torch.tensor(int(self._flag.raised), device=device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

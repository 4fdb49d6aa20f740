"""Stops a run on a signal: after a whole step, its checkpoint written, to be gone on with later."""

from __future__ import annotations

import signal as os_signal
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn

from clt_lightning import compat
from clt_lightning.callbacks.checkpoints import Checkpoints
from clt_lightning.core.errors import UserError
from clt_lightning.runs.requeue import requeue, slurm_job
from clt_lightning.runs.signals import SignalFlag, Stopped, interrupt


class Requeue(pl.Callback):
    """Stops a fit on the scheduler's signal and on Ctrl-C: after the running step, with `last.ckpt` written.

    Schedulers send a signal some time before they end a job (`sbatch --signal=USR1@300`). The run writes `last.ckpt`,
    requeues the Slurm job, and ends with exit code 75; outside Slurm it ends with 75 all the same. Ctrl-C (SIGINT) does
    the same without requeueing, and ends with 130; a second one stops at once. The same command with `--ckpt_path last`
    goes on with the very next step. A validation is broken off; the resumed run begins with it. All processes agree on
    the step at which they stop, by one number that they exchange.

    In `validate`, `test` and `predict`, Ctrl-C stops at once.

    Args:
        signal: name of the scheduler's signal, such as `SIGUSR1` or `SIGUSR2`; null turns this off.
        every_n_steps: optimizer steps between two exchanges of processes; with one process every step is looked at.
        requeue: whether process 0 calls `scontrol requeue` under Slurm.

    Raises:
        UserError: an unknown signal, or `every_n_steps` below 1.
    """

    def __init__(self, signal: str | None = "SIGUSR1", every_n_steps: int = 1, requeue: bool = True) -> None:
        if every_n_steps < 1:
            raise UserError(f"requeue.every_n_steps must be 1 or more, got {every_n_steps}")
        if signal == "SIGINT":
            raise UserError("requeue.signal='SIGINT' is Ctrl-C, which ends a run for good: take SIGUSR1 or SIGUSR2")
        self._flag = SignalFlag(signal) if signal else None
        self.every_n_steps = every_n_steps
        self.requeue = requeue
        self._own_interrupt = False
        self._in_step_with_all = True

    @property
    def flag(self) -> SignalFlag | None:
        """The scheduler's signal; None where it is turned off."""
        return self._flag

    def take_flag(self, flag: SignalFlag | None) -> None:
        """Looks at this flag from now on, which the main thread handles: a run in another thread gets no signals."""
        self._flag = flag

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._flag is not None and stage == "fit":
            self._flag.install()
        self._own_interrupt = interrupt.install() or self._own_interrupt
        interrupt.children = compat.children(trainer)
        interrupt.speaks = trainer.is_global_zero

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        interrupt.waits = False
        if self._flag is not None:
            self._flag.restore()
        if self._own_interrupt:
            interrupt.restore()
            self._own_interrupt = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        interrupt.insist()
        # once it stops, a second signal must not kill what is being written
        if self._flag is not None and not isinstance(exception, Stopped):
            self._flag.restore()

    # -- training ----------------------------------------------------------------------------------------------------
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, i: int) -> None:
        interrupt.waits = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if not compat.whole_step(trainer):
            return  # gradients of half a step are in no checkpoint
        if trainer.world_size > 1 and trainer.global_step % self.every_n_steps:
            return
        asked = self._asked(trainer, pl_module.device)
        if asked is None:
            return
        checkpoints = self._checkpoints(trainer)
        if checkpoints is not None:
            checkpoints.write_last_after_step(trainer)
        self._stop(trainer, asked, checkpoints)

    # -- evaluation --------------------------------------------------------------------------------------------------
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        interrupt.waits = True
        self._in_step_with_all = trainer.world_size == 1 or _same(trainer, pl_module.device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, i: int, j: int = 0
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._stop_at_once(trainer)
            return
        checkpoints = self._checkpoints(trainer)
        saved = checkpoints is None or checkpoints.holds_now(trainer)
        if trainer.sanity_checking or not saved or not self._in_step_with_all:
            return
        asked = self._asked(trainer, pl_module.device)
        if asked is not None:
            self._stop(trainer, asked, checkpoints)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, i: int, j: int = 0
    ) -> None:
        self._stop_at_once(trainer)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, i: int, j: int = 0
    ) -> None:
        self._stop_at_once(trainer)

    # -- stopping ----------------------------------------------------------------------------------------------------
    def _stop_at_once(self, trainer: pl.Trainer) -> None:
        """Where Python has lost the exception of a Ctrl-C, its flag is still there."""
        if interrupt.raised:
            raise KeyboardInterrupt

    def _checkpoints(self, trainer: pl.Trainer) -> Checkpoints | None:
        return next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)), None)

    def _asked(self, trainer: pl.Trainer, device: torch.device) -> str | None:
        """The signal that any process has got."""
        mine = 2 if interrupt.raised else 1 if self._flag is not None and self._flag.raised else 0
        if trainer.world_size > 1:
            told = torch.tensor(mine, device=device)
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
            mine = int(told.item())
        if mine == 1:
            return "a signal" if self._flag is None else self._flag.signal.name
        return "SIGINT" if mine else None

    def _stop(self, trainer: pl.Trainer, asked: str, checkpoints: Checkpoints | None) -> None:
        if asked != "SIGINT":
            if SignalFlag.is_main_thread():
                # Slurm ends the job as soon as it has requeued it: these last moments must not look like a crash
                os_signal.signal(os_signal.SIGTERM, os_signal.SIG_IGN)
            if trainer.is_global_zero and self.requeue and (job := slurm_job()):
                requeue(job)
        trainer.strategy.barrier("stopping")  # a scheduler may end all processes once the first one is gone
        children = compat.children(trainer)
        interrupt.children = list(children)
        children.clear()  # they end now, and nobody is to be alarmed
        last = None if checkpoints is None or not checkpoints.last_model_path else Path(checkpoints.last_model_path)
        raise Stopped(asked, trainer.global_step, last)


def _same(trainer: pl.Trainer, device: torch.device) -> bool:
    """Whether all processes have the same number of validation batches."""
    batches = float(sum(trainer.num_val_batches))
    bounds = torch.tensor([batches, -batches], device=device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    return bool(bounds[0] == -bounds[1])

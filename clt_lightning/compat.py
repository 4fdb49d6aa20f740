"""Lightning's private names that this package uses, all in one file; `tests/test_compat.py` has a test for each.

`pyproject.toml` keeps Lightning below the next minor version: a newer one is tried by raising that bound and running
these tests.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.optimizer import _optimizer_to_device
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor

optimizer_to_device: Callable[..., None] = _optimizer_to_device


# -- where a fit is --------------------------------------------------------------------------------------------------


def whole_step(trainer: pl.Trainer) -> bool:
    """Whether no gradients are waiting for the rest of their optimizer step; to be asked after a batch."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether a validation comes before the next batch; to be asked in `on_train_batch_end`."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def was_last_batch(trainer: pl.Trainer) -> bool:
    """Whether the batch was the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def set_logged_step(trainer: pl.Trainer, step: int) -> None:
    """Loggers put the numbers of the next validation or test at this step."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def validate(trainer: pl.Trainer) -> None:
    """Runs a validation within a fit."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True


# -- loops -----------------------------------------------------------------------------------------------------------


class _WholeSteps(_TrainingEpochLoop):
    """Validates and stops between optimizer steps only, since a state within one cannot be gone on from.

    A validation that `val_check_interval` puts into the middle of an accumulated step comes at its end.
    """

    _decided: tuple[int, bool] = (-1, False)

    @property
    def done(self) -> bool:
        return super().done and not (self.trainer.should_stop and self._should_accumulate())

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        if self._should_accumulate():
            return False
        if self.trainer.should_stop:
            return super()._should_check_val_fx(data_fetcher)
        batch = self.batch_progress.total.ready
        if self._decided[0] != batch:
            # once per batch: an interval in time would give another answer a moment later
            self._decided = batch, super()._should_check_val_fx(data_fetcher) or self._fell_into_this_step()
        return self._decided[1]

    def _fell_into_this_step(self) -> bool:
        trainer = self.trainer
        interval = trainer.val_check_batch
        if not isinstance(interval, int) or not self._should_check_val_epoch():
            return False
        epochs_count = trainer.check_val_every_n_epoch is not None
        batches = 1 + (self.batch_idx if epochs_count else self.total_batch_idx)
        earlier = (self.batch_progress.current.ready - 1) % trainer.accumulate_grad_batches
        return any((batches - back) % interval == 0 for back in range(1, earlier + 1))


class _WithItsEnd(_FitLoop):
    """Where a resumed run has no step left, does what follows the last one; Lightning would do nothing."""

    def run(self) -> None:
        self.setup_data()
        if self.trainer.ckpt_path is None or self.max_batches == 0 or not self.done:
            super().run()
            return
        self.on_run_start()
        set_logged_step(self.trainer, self.epoch_loop.global_step)
        self.on_run_end()


def whole_steps(trainer: pl.Trainer) -> None:
    """Lets a trainer validate, stop and end in ways that can be resumed; to be called before it trains."""
    # other objects of the trainer hold these two already
    trainer.fit_loop.__class__ = _WithItsEnd
    trainer.fit_loop.epoch_loop.__class__ = _WholeSteps


# -- callbacks -------------------------------------------------------------------------------------------------------


class CheckpointFiles(ModelCheckpoint):
    """ModelCheckpoint with a `last.ckpt` that can be written at any time, and a say before each file."""

    def before_file(self, trainer: pl.Trainer, filepath: str) -> None:
        """Called on every process before a checkpoint is written."""

    def write_last_now(self, trainer: pl.Trainer) -> None:
        """Writes `last.ckpt`."""
        # The base class takes a checkpoint at this step as a reason not to look for a best one: keep its mark
        mark = self._last_global_step_saved
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._last_global_step_saved = mark

    def after_last(self, trainer: pl.Trainer) -> None:
        """Called on every process after `last.ckpt` was written, by whomever."""

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self.after_last(trainer)

    def after_file(self, trainer: pl.Trainer, filepath: str) -> None:
        """Called on every process after a checkpoint was written."""

    def give_name(self, trainer: pl.Trainer, filepath: str) -> bool:
        """Called on every process in the place of writing: whether a file that holds this state has got the name."""
        return False

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self.before_file(trainer, filepath)
        if self.give_name(trainer, filepath):
            self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
            return
        super()._save_checkpoint(trainer, filepath)
        self.after_file(trainer, filepath)


def stop_after_validations(stopping: EarlyStopping) -> None:
    """Lets early stopping look at a validation's numbers right after it.

    By default it may wait for the end of the epoch; a run that is resumed in between has the numbers no longer.
    """
    if stopping.monitor.startswith("val/"):
        stopping._check_on_train_epoch_end = False


# -- command line, logger, module, processes -------------------------------------------------------------------------


class CommandLine(LightningCLI):
    """LightningCLI with public hooks for what it keeps to itself."""

    def parser_of(self, command: str) -> LightningArgumentParser:
        """The parser of one command's options."""
        return self._parser(command)

    def prepare_parser(self, parser: LightningArgumentParser, command: str) -> None:
        """Called with each command's parser, once it has all its options."""

    def parse_ckpt_path(self) -> None:
        """Takes the model's settings out of the checkpoint that `--ckpt_path` names."""
        super()._parse_ckpt_path()

    def arguments_of(self, command: str) -> dict[str, Any]:
        """More arguments of the Trainer's method that runs a command."""
        return {}

    def _parse_ckpt_path(self) -> None:
        self.parse_ckpt_path()

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self.prepare_parser(parser, subcommand)
        return parser

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | self.arguments_of(subcommand)


def purge_from(logger: TensorBoardLogger, step: int) -> None:
    """TensorBoard drops what an earlier start has logged from this step on; to be called before anything is logged."""
    logger._kwargs["purge_step"] = step


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The trainer that a module belongs to; None without."""
    return module._trainer


def set_process_group(strategy: Any, group: Any) -> None:
    """Gives DDP another group than all processes."""
    strategy._ddp_kwargs["process_group"] = group


def forget_module(strategy: Any) -> None:
    """Leaves a module out of a strategy's teardown."""
    strategy._lightning_module = None


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a parser, which argparse keeps to itself."""
    return [action for action in parser._actions if action.option_strings]


def words_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser that are no options, without its subcommands."""
    return [a for a in parser._actions if not a.option_strings and not isinstance(a, argparse._SubParsersAction)]


def subcommands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's subcommands, by name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def children(trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
    """The processes that this one has started for a distributed run; emptied, Lightning no longer watches them.

    It would kill this process a few seconds after one of them has ended with a code.
    """
    processes = getattr(trainer.strategy.launcher, "procs", None)
    return processes if isinstance(processes, list) else []

"""One run of a sweep: fit as ever, which lets the others go on between its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from clt_lightning import compat
from clt_lightning.backbone import Backbone
from clt_lightning.backbone.make import one_backbone
from clt_lightning.callbacks import Requeue, Summary
from clt_lightning.callbacks.progress import total_steps
from clt_lightning.cli.sweep.members import Member
from clt_lightning.cli.sweep.outcome import Outcome
from clt_lightning.cli.trainer import CLTCLI
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import say
from clt_lightning.data.feed.loader import EvalLoader, TrainLoader
from clt_lightning.data.feed.shared import SharedPackets
from clt_lightning.runs.signals import SignalFlag
from clt_lightning.runs.turns import Turns
from clt_lightning.training.shared_forward import SharedForward


class Together:
    """What the members of a sweep have in common.

    Attributes:
        turns: whose turn it is.
        backbones: the one backbone, once it is made.
        forwards: what it has just seen.
        packets: the data that are read once for all.
        flag: the scheduler's signal, once it is known.
        requeues: whether the job is to be requeued after it.
    """

    def __init__(self, turns: Turns, members: int) -> None:
        self.turns = turns
        self.backbones: list[Backbone] = []
        self.forwards = SharedForward()
        self.packets = SharedPackets(members)
        self.flag: SignalFlag | None = None
        self.requeues = False
        self._steps: Progress | None = None

    def listen(self, callback: Requeue) -> None:
        """The scheduler's signal, as a member asks for it, stops all; the job is requeued once, at the end."""
        self.requeues |= callback.requeue
        callback.requeue = False
        if self.flag is None and callback.flag is not None:
            self.flag = callback.flag
            self.turns.in_calling_thread(self.flag.install)

    def plan(self, steps: int) -> None:
        """So many more steps are to be done."""
        if self._steps is None:
            self._steps = Progress("sweep", 0, "steps of all runs", stream="stdout")
        self._steps.total = (self._steps.total or 0) + steps

    def step(self) -> None:
        """One is done."""
        if self._steps is not None:
            self._steps.update()

    def close(self) -> None:
        """Says how long it took."""
        if self._steps is not None:
            self._steps.close(self._steps.done != self._steps.total)


class TakesTurns(pl.Callback):
    """Hands over between batches, so that all members meet each batch while it and its forward are at hand.

    Args:
        together: what the members share.
        outcome: what becomes of this one.
    """

    def __init__(self, together: Together, outcome: Outcome) -> None:
        self._together, self._outcome = together, outcome

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.forwards = self._together.forwards
        for callback in trainer.callbacks:
            if isinstance(callback, Requeue):  # its signal reaches the main thread alone, which has this flag
                callback.take_flag(self._together.flag)

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._share(trainer.train_dataloader)
        steps = total_steps(trainer)
        self._together.plan(max(0, steps - trainer.global_step) if steps is not None else 0)
        self._outcome.folder = Path(trainer.log_dir)
        self._together.turns.meet("begun")
        self._outcome.begun = True

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._together.turns.pass_on()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if compat.whole_step(trainer):
            self._together.step()

    def on_validation_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        for loader in (
            trainer.val_dataloaders if isinstance(trainer.val_dataloaders, list) else [trainer.val_dataloaders]
        ):
            self._share(loader)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._together.turns.meet(f"validation {trainer.global_step}")

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._together.turns.pass_on()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._outcome.numbers = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        say(f"\n{self._outcome.name}, step {trainer.global_step:,}:")

    def on_fit_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._together.turns.meet("trained")  # what Lightning does next takes the backbone off its device

    def _share(self, loader: Any) -> None:
        if isinstance(loader, TrainLoader | EvalLoader):
            loader.shared = self._together.packets


class MemberCLI(CLTCLI):
    """fit for one member.

    Args:
        member: its name and settings.
        outcome: what becomes of it.
        together: what it shares with the others.
        words: the command and its options, the member's settings among them.
        trusted: as in `ConfigCLI`.
        **options: as in LightningCLI.
    """

    def __init__(
        self, member: Member, outcome: Outcome, together: Together, words: list[str], trusted: bool, **options: Any
    ) -> None:
        self.member, self.outcome, self.together = member, outcome, together
        super().__init__(words, None, trusted, **options)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """As ever; the run lives in `<runs_dir>/<name of the sweep>/<name of the member>/version_<n>/`."""
        super().parse_arguments(parser, args)
        config = self.config[self.command]
        if not config.get("name"):
            return
        config.runs_dir, config.name = str(Path(config.runs_dir) / config.name), self.member.name

    def instantiate_classes(self) -> None:
        """As ever, on the backbone that the first member has made."""
        with one_backbone(self.together.backbones):
            super().instantiate_classes()

    def _speakers(self, trainer: Any) -> list[Callback]:
        first = not self.together.turns.member
        return [
            TakesTurns(self.together, self.outcome),
            *([Summary()] if first and trainer.enable_model_summary is not False else []),
        ]

    def fit(self, ckpt_path: Any = None, **kwargs: Any) -> None:
        """As ever, when all members could be made.

        Raises:
            UserError: more than one process.
        """
        if self.trainer.world_size > 1:
            raise UserError(
                f"--sweep: a sweep runs in one process on one device, and these settings ask for "
                f"{self.trainer.world_size}: set trainer.devices and trainer.num_nodes to 1; a larger sweep can be "
                "divided over several files, a device each"
            )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Requeue):
                self.together.listen(callback)
        self.together.turns.meet("made")
        super().fit(ckpt_path, **kwargs)

"""Gives a run its folder: claimed when its set-up has succeeded, written to when its first batch has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from clt_lightning.callbacks.save_config import SaveConfig
from clt_lightning.core.errors import UserError
from clt_lightning.runs.claim import Claim
from clt_lightning.runs.folder import RunFolder

#: tags of single layers, shares by token set, and the lesser parts of the margin
_PER_LAYER = re.compile(r"/layer_\d+$|/share/(?:features|skip)/|/share/margin/(?!features$|skip$)")


class RunLogger(TensorBoardLogger):
    """TensorBoard's logger of a run whose version may still be open; it makes no file before something is logged.

    Args:
        root: `<runs_dir>/<name>`.
        folder: the run's folder; None while it is not claimed.
        writes: false for an evaluation in the folder of a training: its numbers stand in results.json, and the
            training's curves stay its own.
        per_layer: whether the curves of every layer are kept: in a ViT-B 150, in which nobody finds the ten that say
            how a run goes. Callbacks, tables and results.json have these numbers either way.
    """

    def __init__(self, root: Path, folder: Path | None = None, writes: bool = True, per_layer: bool = False) -> None:
        super().__init__(root.parent, root.name, default_hp_metric=False)
        self._root, self._folder, self._open = root, folder, False
        self._writes, self.per_layer = writes, per_layer

    def place(self, folder: Path) -> None:
        """Says where the run lives."""
        self._folder = folder

    @property
    def version(self) -> str:
        return "unclaimed" if self._folder is None else self._folder.name

    @property
    def log_dir(self) -> str:
        return str(self._root if self._folder is None else self._folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if not self._writes:
            return _Nowhere()
        # Lightning asks for it in the set-up, where nothing is to be written yet
        return super().experiment if self._open else _Opens(self)

    def open(self) -> None:
        """Makes the file of events."""
        self._open = self._writes

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As in the base class, without what is of one layer alone."""
        shown = {name: value for name, value in metrics.items() if self.per_layer or not _PER_LAYER.search(name)}
        super().log_metrics(shown, step)

    def save(self) -> None:
        if self._open:
            super().save()


class _Opens:
    """Stands for the writer of events until it is used."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        self._logger.open()
        return getattr(self._logger.experiment, name)


class _Nowhere:
    """A writer of events that writes none."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Place(pl.Callback):
    """Claims the run's folder and keeps it locked; the first of a run's callbacks.

    Process 0 claims, the others are told. A start that fails before its first batch is done leaves nothing behind, and
    changes nothing in a folder that was there.

    Args:
        root: `<runs_dir>/<name>`.
        folder: a version that is to be taken; None takes the next free one.
        logger: gets the folder.
        new: whether it is a run of its own, which does not write over another one.
        trains: whether the config is that of the run's training; an evaluation leaves one that is there.

    Attributes:
        folder: the run's folder; None while it is not claimed and any is as good.
        logger: as given.
    """

    def __init__(self, root: Path, folder: RunFolder | None, logger: RunLogger, new: bool, trains: bool) -> None:
        self.folder, self.logger = folder, logger
        self._root, self._new, self._trains = root, new, trains
        self._claim: Claim | None = None
        self._claimed = self._fresh = self._begun = False

    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        if self._claimed:
            return
        told = trainer.strategy.broadcast(self._take() if trainer.is_global_zero else None)
        assert told is not None
        error, path, self._fresh = told
        if error is not None:
            raise UserError(error)
        self.folder, self._claimed = RunFolder(Path(path)), True
        self.logger.place(self.folder.path)
        trainer.profiler.setup(stage=stage, local_rank=trainer.local_rank, log_dir=path)  # was told the root before
        rank_zero_info(f"run: {self.folder.shown}")

    def _take(self) -> tuple[str | None, str, bool]:
        try:
            self._claim = claim = Claim.next(self._root) if self.folder is None else Claim.of(self.folder)
            self.check(claim.folder)
            claim.folder.clear()
        except UserError as error:
            self.release()
            return str(error), "", False
        return None, str(claim.folder.path), claim.fresh

    def check(self, folder: RunFolder) -> None:
        """Whether this run may be written to a folder.

        Raises:
            UserError: another run lies there.
        """
        if self._new and folder.has_run:
            raise UserError(
                f"{folder.shown} holds a run already, which this one would overwrite: --ckpt_path last goes on with "
                "that run; without --version, this one gets a folder of its own"
            )

    def release(self) -> None:
        """Lets others write to the folder; one that nothing was written to is gone."""
        if self._claim is not None:
            self._claim.release()
        self._claim, self._claimed = None, False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._claim is not None and not self._claim.begun:
            self.release()  # at once: Lightning kills this process when another one of the run has failed

    # -- the run begins ----------------------------------------------------------------------------------------------
    def _begin(self, trainer: pl.Trainer) -> None:
        if self._begun or trainer.sanity_checking:
            return
        self._begun = True
        if self._claim is not None:
            self._claim.begin()
        for callback in trainer.callbacks if trainer.is_global_zero else []:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfig) and (self._fresh or self._trains):
                assert self.folder is not None
                callback.write(self.folder.path)
        self.logger.open()
        self.logger.save()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._begin(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._begin(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._begin(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._begin(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._begin(trainer)  # a resumed run that has only its end left

"""fit, validate, test, predict: LightningCLI with the run's folder, the callbacks that every run has, and clear
errors.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from clt_lightning import compat
from clt_lightning.callbacks import Checkpoints, ProgressLine, Summary
from clt_lightning.callbacks.place import Place, RunLogger
from clt_lightning.callbacks.save_config import SaveConfig
from clt_lightning.cli.config_cli import ConfigCLI, read_words
from clt_lightning.cli.exits import exit_codes, full_disk
from clt_lightning.cli.quiet import quieten
from clt_lightning.cli.sweep.words import split_words
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors
from clt_lightning.data.sets import modules
from clt_lightning.parallel.strategy import FeatureParallel
from clt_lightning.runs import resume
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO, read_checkpoint
from clt_lightning.runs.claim import require_writable
from clt_lightning.runs.folder import PREVIOUS, RunFolder, newest_to_go_on, newest_without_checkpoint, shown
from clt_lightning.runs.lock import busy, holder
from clt_lightning.runs.stopping import Stops


class CLTCLI(ConfigCLI):
    """The command line's fit, validate, test and predict."""

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        config = self.config[self.subcommand]
        if config.trainer.barebones:
            raise UserError(
                "trainer.barebones=true turns off the logging and the checkpoints that make a run: leave it out (it "
                "measures Lightning's own overhead)"
            )
        self._start: resume.Progress | None = None
        self._ended = False  # whether the checkpoint has no step left
        self._stopped: str | None = None  # early stopping's reason
        self._place: Place | None = None
        if config.trainer.logger in (None, True) and not config.trainer.fast_dev_run:
            kwargs |= self._take_place(config)
        if config.trainer.enable_checkpointing is False:
            rank_zero_info("trainer.enable_checkpointing=false: no checkpoint is written, this run cannot be resumed")
            self.config_init[self.subcommand]["checkpoints"] = lightning.Callback()
        feature = config.model.parallel.feature
        if feature > 1:
            if config.trainer.strategy not in ("auto", "ddp"):
                raise UserError(
                    f"model.parallel.feature={feature} brings its own strategy: leave trainer.strategy at auto or ddp"
                )
            kwargs["strategy"] = FeatureParallel(feature)
        elif config.trainer.strategy == "ddp":
            # every parameter gets a gradient in every step, and no buffer needs broadcasting
            kwargs["strategy"] = DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False)
        kwargs["plugins"] = self._plugins()
        self.trainer_defaults["callbacks"] = self._speakers(config.trainer)
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfig):
                callback.waits = self._place is not None or config.trainer.logger is False
        return trainer

    def _speakers(self, trainer: Any) -> list[Callback]:
        """What tells the user where the run is, in the place of Lightning's own; the user's callbacks come before."""
        asked = _listed(self.config_init[self.subcommand].trainer.callbacks)
        speakers: list[Callback] = []
        if trainer.enable_model_summary is not False and not any(isinstance(c, ModelSummary) for c in asked):
            speakers.append(Summary())
        if trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in asked):
            speakers.append(ProgressLine())
        return speakers

    def _take_place(self, config: Any) -> dict[str, Any]:
        """Where the run lives and where it goes on; what the trainer needs for that.

        Raises:
            UserError: it cannot be there, or cannot go on.
        """
        root, fits = Path(config.runs_dir) / config.name, self.subcommand == "fit"
        callbacks = _listed(self.config_init[self.subcommand].trainer.callbacks)
        folder = self._find_start(config, root)
        trained = not fits and folder is not None and folder.has_run
        logger = RunLogger(root, None if folder is None else folder.path, not trained, config.figures.per_layer)
        here = False
        if self._start is not None:
            here = folder is not None and self._start.path.resolve().parent == folder.checkpoints.resolve()
            self._stopped = Stops(callbacks).still_stop(self._start.stopped)
            limits = config.trainer.max_steps, config.trainer.max_epochs
            self._ended = self._start.finished(*limits) or self._stopped is not None
            compat.purge_from(logger, self._start.purge_step(self._ended))
        elif fits and folder is not None:
            compat.purge_from(logger, 0)  # what a start has logged that was killed before its first checkpoint
        self._place = Place(root, folder, logger, new=fits and config.ckpt_path != "last" and not here, trains=fits)
        if folder is not None:
            self._place.check(folder)
        return {"logger": logger, "callbacks": [self._place, *callbacks]}

    def _find_start(self, config: Any, root: Path) -> RunFolder | None:
        """Decides which version of the run this is (None: the next free one), and for fit where it goes on.

        Raises:
            UserError: another process writes there, or no checkpoint is whole.
        """
        folder = None if config.version is None else RunFolder(root / f"version_{config.version}")
        if self.subcommand != "fit":
            return folder
        last = config.ckpt_path == "last"
        if last and folder is None:
            folder = newest_to_go_on(root) or newest_without_checkpoint(root)
        require_writable(root if folder is None else folder.path)
        if folder is not None and (other := holder(folder.path)) is not None:
            raise busy(folder.path, other)
        checkpoints = config.checkpoints.dirpath or (None if folder is None else folder.checkpoints)
        if config.ckpt_path is not None and (checkpoints is not None or not last):
            self._start = resume.find(config.ckpt_path, Path(checkpoints or ""))
        if last and self._start is None:
            where = shown(root) if folder is None else folder.shown
            rank_zero_info(f"--ckpt_path last: no checkpoint in {where} yet, the run starts from step 0")
        return folder

    def _plugins(self) -> list[Any]:
        """The user's plugins, with whole checkpoint files and without Lightning's own requeueing under Slurm."""
        plugins = _listed(self.config_init[self.subcommand].trainer.plugins)
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            plugins.append(SafeCheckpointIO())
        if SLURMEnvironment.detect() and not any(isinstance(p, ClusterEnvironment) for p in plugins):
            # Lightning's saves in the middle of a step, and trains on afterwards
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return plugins

    @contextmanager
    def _folder_held(self) -> Iterator[None]:
        """Gives the run's folder back at the end; a disk that refuses something is one message."""
        try:
            yield
        except Exception as error:
            folder = None if self._place is None else self._place.folder
            with disk_errors(Path(self.config[self.subcommand].runs_dir) if folder is None else folder.path):
                raise full_disk(error) or error from error.__cause__
        finally:
            if self._place is not None:
                self._place.release()

    def _say_next(self, command: str) -> None:
        folder = None if self._place is None else self._place.folder
        if folder is not None and folder.has_checkpoint:
            rank_zero_info(f"next: python -m clt_lightning {command} --run {shlex.quote(folder.shown)}")

    def fit(self, ckpt_path: Any = None, **kwargs: Any) -> None:
        """`Trainer.fit`, from the checkpoint that was found; a run that is finished and complete is left as it is."""
        start = self._start
        if start is not None:
            if self._ended and self._complete(start):
                assert self._place is not None
                assert self._place.folder is not None
                why = f"; early stopping: {self._stopped.strip()}" if self._stopped else ""
                rank_zero_info(
                    f"nothing to do: the run in {self._place.folder.shown} is finished (step {start.step:,}{why})"
                )
                self._say_next("test")
                return
            # before anything is written into the run's folder
            self.model.check_form(read_checkpoint(start.path))
            ckpt_path = str(start.path)
        elif ckpt_path == "last" and self._place is not None:
            ckpt_path = None  # searched above; Lightning would warn
        with self._folder_held():
            self.trainer.fit(ckpt_path=ckpt_path, **kwargs)
            self._validate_at_the_end()
        self._say_next("test")

    def validate(self, **kwargs: Any) -> None:
        """`Trainer.validate`, in the run's folder, without Lightning's table of every number."""
        with self._folder_held():
            self.trainer.validate(verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """`Trainer.test`, in the run's folder, without Lightning's table of every number."""
        with self._folder_held():
            self.trainer.test(verbose=False, **kwargs)
        self._say_next("report")

    def predict(self, **kwargs: Any) -> None:
        """`Trainer.predict`; `Predictions` writes what comes out."""
        with self._folder_held():
            self.trainer.predict(return_predictions=False, **kwargs)

    def before_validate(self) -> None:
        """Loggers get the step of the weights; Lightning would put their numbers at step 0."""
        path = self.config[self.subcommand].ckpt_path
        if path and Path(path).is_file():
            content = read_checkpoint(path)
            compat.set_logged_step(self.trainer, int(content.get("global_step", 0)))

    before_test = before_validate

    def _complete(self, start: resume.Progress) -> bool:
        """Whether everything that follows the last step is there: transcoder/, and the validation of these weights."""
        assert self._place is not None
        folder = self._place.folder
        if folder is None:
            return False
        validated = not self._validates() or folder.evaluated_at == start.step
        if not validated:
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.validate_again = True
                    compat.purge_from(self._place.logger, start.purge_step(ended=False))
        whole = start.path.name != PREVIOUS  # taken in the place of a damaged last.ckpt, which is to be written again
        return whole and validated and folder.exported_at == start.step and folder.finished is not None

    def _validates(self) -> bool:
        """Whether there is anything to validate on; a set may have a training split alone."""
        if self.trainer.limit_val_batches == 0:
            return False
        return not isinstance(self.datamodule, modules.WebImages) or self.datamodule.split("val") is not None

    def _validate_at_the_end(self) -> None:
        """Validates the final weights where `Checkpoints`, which does it otherwise, is turned off."""
        trainer = self.trainer
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        if (
            self._validates()
            and self.model.validated_at_step != trainer.global_step
            and not trainer.checkpoint_callbacks
        ):
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)


def _listed(given: Any) -> list[Any]:
    """A setting that may be null, one thing or several."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def run_trainer(words: list[str]) -> None:
    """Runs one of LightningCLI's commands; `words` are the command and its options.

    Raises:
        SystemExit: 75 after a signal that `requeue` waits for, 130 after Ctrl-C, 143 after SIGTERM.
    """
    with exit_codes(words):
        _run(words)


def _run(words: list[str]) -> None:
    quieten()
    words, sweep = split_words(words)
    if sweep is not None:
        from clt_lightning.cli.sweep.command import run_sweep

        run_sweep(words, sweep)
        return
    words, saved, trusted = read_words(words)
    CLTCLI(
        words,
        saved,
        trusted,
        # --run writes into the run's folder, whose config.yaml says how it was trained
        save_config_callback=None if saved is not None else SaveConfig,
        save_config_kwargs={"overwrite": True},
    )

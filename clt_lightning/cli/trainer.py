"""fit, validate, test, predict: LightningCLI with the run's folder, the callbacks that every run has, and clear
errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from clt_lightning.callbacks import ExportTranscoder
from clt_lightning.cli.config_cli import ConfigCLI, read_words
from clt_lightning.cli.quiet import quieten
from clt_lightning.core.errors import UserError
from clt_lightning.data import modules
from clt_lightning.parallel.strategy import FeatureParallel
from clt_lightning.run import resume
from clt_lightning.run.checkpoint_io import SafeCheckpointIO
from clt_lightning.run.requeue import EXIT_STOPPED, EXIT_TERMINATED, Stopped


class CLTCLI(ConfigCLI):
    """The command line's fit, validate, test and predict."""

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        config = self.config[self.subcommand] if self.subcommand else self.config
        self._start: resume.Progress | None = None
        self._folder: Path | None = None  # None: not known before the logger takes the next free version
        self._nothing_to_do = False
        version = config.version
        if config.trainer.logger in (None, True) and not config.trainer.fast_dev_run:
            version = self._find_start(config)
        if config.trainer.logger in (None, True):
            more: dict[str, Any] = {} if self._start is None else {"purge_step": self._start.purge_step}
            kwargs["logger"] = TensorBoardLogger(config.runs_dir, config.name, version, default_hp_metric=False, **more)
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
        return super().instantiate_trainer(**kwargs)

    def _find_start(self, config: Any) -> int | None:
        """Decides which version of the run this is, and for fit which checkpoint it goes on from."""
        root = Path(config.runs_dir) / config.name
        version: int | None = config.version
        if self.subcommand != "fit":
            return version
        last = config.ckpt_path == "last"
        if last and version is None:
            version = resume.newest_version(root)
        self._folder = None if version is None else root / f"version_{version}"
        resume.require_writable(self._folder or root)
        checkpoints = config.checkpoints.dirpath or (self._folder / "checkpoints" if self._folder else None)
        if config.ckpt_path is not None and (checkpoints is not None or not last):
            self._start = resume.find(config.ckpt_path, Path(checkpoints or ""))
        if last and self._start is None:
            rank_zero_info(f"--ckpt_path last: no checkpoint in {self._folder or root} yet, the run starts from step 0")
        return version

    def _plugins(self) -> list[Any]:
        """The user's plugins, with whole checkpoint files and without Lightning's own requeueing under Slurm."""
        asked = self._get(self.config_init, "trainer", default={}).get("plugins")
        plugins = list(asked) if isinstance(asked, list | tuple) else [asked] if asked is not None else []
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            plugins.append(SafeCheckpointIO())
        if SLURMEnvironment.detect() and not any(isinstance(p, ClusterEnvironment) for p in plugins):
            # Lightning's saves in the middle of a step, and trains on afterwards
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return plugins

    def fit(self, ckpt_path: Any = None, **kwargs: Any) -> None:
        """`Trainer.fit`, from the checkpoint that was found; a run that is finished and complete is left as it is."""
        start = self._start
        if start is not None:
            limits = self.trainer.max_steps, self.trainer.max_epochs
            if start.finished(*limits) and self._complete(start.step):
                rank_zero_info(f"nothing to do: the run in {self._folder} is finished (step {start.step:,})")
                self._nothing_to_do = True
                return
            # before anything is written into the run's folder
            self.model.check_form(torch.load(start.path, map_location="cpu", mmap=True, weights_only=True))
            ckpt_path = str(start.path)
        elif ckpt_path == "last" and self._get(self.config, "trainer").logger in (None, True):
            ckpt_path = None  # searched above; Lightning would warn
        self.trainer.fit(ckpt_path=ckpt_path, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """`Trainer.predict`; `Predictions` writes what comes out."""
        self.trainer.predict(return_predictions=False, **kwargs)

    def before_validate(self) -> None:
        """Loggers get the step of the weights; Lightning would put their numbers at step 0."""
        path = self._get(self.config, "ckpt_path")
        if path and Path(path).is_file():
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = int(content.get("global_step", 0))

    before_test = before_validate

    def _complete(self, step: int) -> bool:
        """Whether everything that follows the last step is there: transcoder/, and the validation of these weights."""
        if self._folder is None or resume.exported_at(self._folder) != step:
            return False
        return not self._validates() or resume.evaluated_at(self._folder) == step

    def _validates(self) -> bool:
        """Whether there is anything to validate on; a set may have a training split alone."""
        if not self.trainer.enable_validation or self.trainer.limit_val_batches == 0:
            return False
        return not isinstance(self.datamodule, modules.WebImages) or self.datamodule.split("val") is not None

    def after_fit(self) -> None:
        """Ends every fit with an evaluation of the final weights, unless the last one was of these weights."""
        trainer, start = self.trainer, self._start
        if self._nothing_to_do or trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        step, validated_at = trainer.global_step, self.model.validated_at_step
        if start is not None and start.step == step and self._folder is not None:
            # killed between its last step and its end: Lightning trains no step, and does nothing that follows one
            if resume.exported_at(self._folder) != step:
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, ExportTranscoder):
                        callback.on_train_end(trainer, self.model)
            validated_at = resume.evaluated_at(self._folder)
            # the last step's own count is raised after it, so not in its checkpoint: loggers take it for the step
            trainer.fit_loop.epoch_loop._batches_that_stepped = step
        if self._validates() and validated_at != step:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)


def run_trainer(words: list[str]) -> None:
    """Runs one of LightningCLI's commands; `words` are the command and its options.

    Raises:
        SystemExit: 75 after a signal that `requeue` waits for, 143 after SIGTERM.
    """
    try:
        _run(words)
    except Stopped as stopped:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"stopped: {stopped}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STOPPED) from None
    except SIGTERMException:
        # Lightning's would end with 0, and a scheduler would take the run for finished
        print("terminated (SIGTERM): --ckpt_path last goes on from the last checkpoint", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_TERMINATED) from None


def _run(words: list[str]) -> None:
    quieten()
    words, saved, trusted = read_words(words)
    CLTCLI(
        words,
        saved,
        trusted,
        # --run writes into the run's folder, whose config.yaml says how it was trained
        save_config_callback=None if saved is not None else SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
    )

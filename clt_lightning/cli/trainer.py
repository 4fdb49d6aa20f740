"""fit, validate, test, predict: LightningCLI with the run's folder, the callbacks that every run has, and clear
errors."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from clt_lightning.callbacks import (
    Board,
    Checkpoints,
    Evaluate,
    ExportTranscoder,
    Figures,
    Predictions,
    RandomState,
    Reconstruction,
    Requeue,
    RunRecord,
    Table,
    Throughput,
    ZeroShot,
)
from clt_lightning.cli.quiet import quieten
from clt_lightning.cli.run_option import expand_run, named_checkpoint
from clt_lightning.core import seeds
from clt_lightning.core.errors import UserError
from clt_lightning.data import modules
from clt_lightning.module import CLTModule
from clt_lightning.parallel.strategy import FeatureParallel
from clt_lightning.run import resume
from clt_lightning.run.checkpoint_io import SafeCheckpointIO, damage
from clt_lightning.run.requeue import EXIT_STOPPED, EXIT_TERMINATED, Stopped
from clt_lightning.transcoder.precision import cpu_multiplies


class CLTCLI(LightningCLI):
    """LightningCLI for this project.

    Beside `model`, `data` and `trainer` a config holds `name`, `version` and `runs_dir`, which say where the run lives
    (`<runs_dir>/<name>/version_<version>/`), and one block for each callback that every run has.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="clt", help="name of the run: <runs_dir>/<name>/version_<n>/")
        parser.add_argument(
            "--version", type=int | None, default=None, help="version of the run; null takes the next free one"
        )
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder of all runs")
        parser.add_lightning_class_args(Reconstruction, "reconstruction")
        parser.add_lightning_class_args(ZeroShot, "zero_shot")
        parser.add_lightning_class_args(Evaluate, "evaluate")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(Figures, "figures")
        parser.add_lightning_class_args(Board, "board")
        for callback, key in ((Table, "table"), (ExportTranscoder, "export_transcoder"), (RunRecord, "run_record")):
            parser.add_lightning_class_args(callback, key)
        parser.add_lightning_class_args(Predictions, "predictions")
        parser.add_lightning_class_args(RandomState, "random_state")
        # after the others: where it stops a run, they have seen the step
        parser.add_lightning_class_args(Requeue, "requeue")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """LightningCLI's; `predict` writes files, and keeps nothing in memory."""
        commands = LightningCLI.subcommands()
        return commands | {"predict": commands["predict"] | {"return_predictions"}}

    def _parse_ckpt_path(self) -> None:
        # For fit the config is the truth; Lightning would silently put the checkpoint's values in its place
        if self.config.get("subcommand") in (None, "fit"):
            return
        config = self.config[self.config.subcommand]
        if config.ckpt_path in ("last", "best"):
            root = Path(config.runs_dir) / config.name
            config.ckpt_path = str(named_checkpoint(config.ckpt_path, root, config.version))
        if config.ckpt_path and "://" not in config.ckpt_path and (reason := damage(Path(config.ckpt_path))):
            raise UserError(f"--ckpt_path {config.ckpt_path}: {reason}")
        super()._parse_ckpt_path()

    def before_instantiate_classes(self) -> None:
        # the backbone may be a large download: a missing data folder is said before it
        data = self.config[self.subcommand].get("data")
        module_name, _, name = ("" if data is None else data.class_path).rpartition(".")
        cls = getattr(importlib.import_module(module_name), name) if module_name else None
        if isinstance(cls, type) and issubclass(cls, modules.WebImages):
            cls(**data.init_args).check_root()

        # written out, so that the saved config.yaml says which seeds these were
        model = self.config[self.subcommand].model
        model.seed = seeds.resolve(model.seed)
        if isinstance(cls, type) and issubclass(cls, modules.WebImages):
            data.init_args.seed = seeds.resolve(data.init_args.seed)

        clip = model.clip
        on_cpu = self.config[self.subcommand].trainer.accelerator in ("cpu", "auto") and not torch.cuda.is_available()
        if on_cpu and clip.precision == "bf16" and not cpu_multiplies(torch.bfloat16):
            rank_zero_info(
                "this CPU has no bf16 instructions, CLIP would be about 8 times slower in it: "
                "model.clip.precision: fp32 is taken instead of bf16"
            )
            clip.precision = "fp32"

        parallel = model.parallel
        if self.subcommand in ("test", "predict") and parallel.feature > 1:
            # their collectors read single features, of a transcoder that every process has whole
            rank_zero_info(f"{self.subcommand} takes the whole transcoder on every process: model.parallel.feature = 1")
            parallel.feature = 1

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config.trainer.barebones:
            raise UserError(
                "trainer.barebones=true turns off the logging and the checkpoints that make a run: leave it out (it "
                "measures Lightning's own overhead)"
            )
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
    words, of_run = expand_run(words)
    if of_run:
        # given args beside its own command line, LightningCLI warns; here they say the same
        warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    CLTCLI(
        CLTModule,
        lightning.LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        # --run writes into the run's folder, whose config.yaml says how it was trained
        save_config_callback=None if of_run else SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"log_every_n_steps": 50, "num_sanity_val_steps": 0},
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "python -m clt_lightning", "allow_abbrev": False},
        # given both, LightningCLI warns even where they are the same words
        args=None if words == sys.argv[1:] else words,
    )

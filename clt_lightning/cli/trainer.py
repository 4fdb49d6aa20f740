"""fit, validate, test, predict: LightningCLI with the run's folder, the callbacks that every run has, and clear
errors."""

from __future__ import annotations

import sys
from typing import Any

import lightning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from clt_lightning.callbacks import (
    Checkpoints,
    ExportTranscoder,
    Reconstruction,
    RunRecord,
    Table,
    Throughput,
    ZeroShot,
)
from clt_lightning.data import modules  # noqa: F401  (short class names in configs resolve to what is imported)
from clt_lightning.module import CLTModule


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
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Throughput, "throughput")
        for callback, key in ((Table, "table"), (ExportTranscoder, "export_transcoder"), (RunRecord, "run_record")):
            parser.add_lightning_class_args(callback, key)

    def _parse_ckpt_path(self) -> None:
        # For fit the config is the truth; Lightning would silently put the checkpoint's values in its place
        if self.config.get("subcommand") != "fit":
            super()._parse_ckpt_path()

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(config.runs_dir, config.name, config.version, default_hp_metric=False)
        if config.trainer.strategy == "ddp":
            # every parameter gets a gradient in every step, and no buffer needs broadcasting
            kwargs["strategy"] = DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False)
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Ends every fit with an evaluation of the final weights, unless the last one was of these weights."""
        trainer = self.trainer
        if trainer.fast_dev_run or trainer.interrupted or not trainer.enable_validation:
            return
        if self.model.validated_at_step != trainer.global_step:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)


def run_trainer(words: list[str]) -> None:
    """Runs one of LightningCLI's commands; `words` are the command and its options."""
    CLTCLI(
        CLTModule,
        lightning.LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"log_every_n_steps": 50, "num_sanity_val_steps": 0},
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "python -m clt_lightning"},
        # given both, LightningCLI warns even where they are the same words
        args=None if words == sys.argv[1:] else words,
    )

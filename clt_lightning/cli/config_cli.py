"""The reading half of fit, validate, test and predict: from words and config files to a checked config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from clt_lightning import compat
from clt_lightning.backbone import Backbone, clip, vit  # noqa: F401  (classes that a config names without their module)
from clt_lightning.backbone.class_head import ClassHead
from clt_lightning.backbone.make import DEFAULT_CLASS
from clt_lightning.callbacks import (
    Board,
    Checkpoints,
    Curves,
    Evaluate,
    ExportTranscoder,
    Figures,
    Predictions,
    RandomState,
    Reconstruction,
    Requeue,
    RunRecord,
    Shares,
    Table,
    Throughput,
    ZeroShot,
)
from clt_lightning.cli import schema
from clt_lightning.cli.checks import check_config, check_data, check_name, data_class
from clt_lightning.cli.config_paths import settle_paths
from clt_lightning.cli.explain import complaint, explain, kind_of, with_place
from clt_lightning.cli.failures import is_users, message, users_mistakes
from clt_lightning.cli.help import describe
from clt_lightning.cli.layers import Layer, layers_of, options_of
from clt_lightning.cli.parser import Parser
from clt_lightning.cli.run_option import expand_run, named_checkpoint
from clt_lightning.cli.saved import Saved, read_parameters
from clt_lightning.cli.schema import Option, bases_of, table_of
from clt_lightning.cli.written import check_readable
from clt_lightning.core import seeds
from clt_lightning.core.classes import load_class
from clt_lightning.core.errors import UserError
from clt_lightning.data.sets import modules
from clt_lightning.runs.checkpoint_io import damage
from clt_lightning.runs.folder import RunFolder
from clt_lightning.training.module import CLTModule
from clt_lightning.transcoder.precision import cpu_multiplies

#: What a config that says nothing about them means; written out, so that a saved config can be read back
_DEFAULTS = {
    "model.backbone": {"class_path": DEFAULT_CLASS},
    "model.transcoder.activation": {"class_path": "clt_lightning.TopK", "init_args": {"k": 64}},
    "model.attention.activation": {"class_path": "clt_lightning.TopK", "init_args": {"k": 32}},
    "model.optimizer": {"class_path": "clt_lightning.training.optim.AdamW", "init_args": {"lr": 4e-4}},
}


_NEEDS = {
    "fit": "fit needs a config: --config configs/quickstart.yaml, say (fit --help explains every option)",
    "other": "{command} needs a trained run: --run runs/quickstart/version_0, say (or --config and --ckpt_path)",
}


def read_words(words: list[str]) -> tuple[list[str], Saved | None, bool]:
    """A command's words with `--run` put in.

    Returns:
        the words to parse; the run's config, if `--run` named one; and whether it may name code of its own.

    Raises:
        UserError: nothing but the command, or a folder that is no run.
    """
    if len(words) == 1:
        raise UserError(needs(words[0]))
    if words[0] == "fit" and any(word.partition("=")[0] in ("--run", "--trust_config") for word in words):
        raise UserError("--run is for validate, test and predict; fit goes on with a run by --ckpt_path last")
    trusted = "--trust_config" in words
    words, of_run = expand_run([word for word in words if word != "--trust_config"])
    if not of_run:
        return words, None, trusted
    saved = Saved.read(Path(words[words.index("--config") + 1]), trusted)
    return saved.without_leave(words), saved, trusted


def needs(command: str) -> str:
    """What a command cannot do without."""
    return _NEEDS["fit"] if command == "fit" else _NEEDS["other"].format(command=command)


def config_keys() -> schema.Table:
    """The keys that a config of fit may have."""
    return table_of(config_parser())


def config_parser() -> Parser:
    """A parser of these keys, with what explains them."""
    parser = Parser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=bool | int, default=0)
    parser.add_lightning_class_args(lightning.Trainer, "trainer")
    parser.add_lightning_class_args(CLTModule, "model")
    parser.add_lightning_class_args(lightning.LightningDataModule, "data", subclass_mode=True)
    _add_own_keys(parser)
    parser.add_argument("--ckpt_path", type=str | Path | None, default=None)
    return parser


def _add_own_keys(parser: LightningArgumentParser) -> None:
    """What a config holds beside Lightning's `trainer`, `model` and `data`."""
    parser.add_argument("--name", type=str, default="clt", help="name of the run: <runs_dir>/<name>/version_<n>/")
    parser.add_argument(
        "--version", type=int | None, default=None, help="version of the run; null takes the next free one"
    )
    parser.add_argument("--runs_dir", type=str | Path, default="runs", help="folder of all runs")
    parser.add_lightning_class_args(Reconstruction, "reconstruction")
    parser.add_lightning_class_args(ZeroShot, "zero_shot")
    parser.add_lightning_class_args(Shares, "shares")  # after ZeroShot, whose class names it takes
    parser.add_lightning_class_args(Evaluate, "evaluate")
    parser.add_lightning_class_args(Checkpoints, "checkpoints")
    parser.add_lightning_class_args(Throughput, "throughput")
    parser.add_lightning_class_args(Curves, "curves")
    parser.add_lightning_class_args(Figures, "figures")
    parser.add_lightning_class_args(Board, "board")
    for callback, key in ((Table, "table"), (ExportTranscoder, "export_transcoder"), (RunRecord, "run_record")):
        parser.add_lightning_class_args(callback, key)
    parser.add_lightning_class_args(Predictions, "predictions")
    parser.add_lightning_class_args(RandomState, "random_state")
    # after the others: where it stops a run, they have seen the step
    parser.add_lightning_class_args(Requeue, "requeue")
    parser.set_defaults(_DEFAULTS)


def _class_named(content: dict[Any, Any]) -> str | None:
    """The class of the backbone that a layer names."""
    model = content.get("model")
    given = model.get("backbone") if isinstance(model, dict) else None
    name = given.get("class_path") if isinstance(given, dict) else given
    return name if isinstance(name, str) and not name.endswith((".yaml", ".yml", ".json")) else None


def _below(table: Any, key: str) -> dict[str, Any]:
    """The table that a key of an option stands in: of a class its arguments, since `init_args` may be left out."""
    table = table if isinstance(table, dict) else {}
    inner = table.get("init_args")
    return inner if isinstance(inner, dict) and key not in ("class_path", "init_args", "dict_kwargs") else table


class ConfigCLI(compat.CommandLine):
    """LightningCLI with this project's keys and errors.

    Beside `model`, `data` and `trainer` a config holds `name`, `version` and `runs_dir`, which say where the run lives
    (`<runs_dir>/<name>/version_<version>/`), and one block for each callback that every run has.

    Args:
        words: the command and its options, `--run` put in.
        saved: the run's own config among them, if `--run` named one.
        trusted: whether that config, and a checkpoint's parameters, may name code beyond this package's.
        **options: as in LightningCLI.
    """

    def __init__(self, words: list[str], saved: Saved | None = None, trusted: bool = False, **options: Any) -> None:
        self.command, self.saved, self.trusted = words[0], saved, trusted
        self.layers: list[Layer] = []
        self.keys: schema.Table = {}
        try:
            super().__init__(
                CLTModule,
                lightning.LightningDataModule,
                subclass_mode_data=True,
                seed_everything_default=0,
                trainer_defaults={"log_every_n_steps": 50, "num_sanity_val_steps": 0},
                auto_configure_optimizers=False,
                parser_class=Parser,
                parser_kwargs={
                    "prog": "python -m clt_lightning",
                    "allow_abbrev": False,
                    "exit_on_error": False,
                    self.command: {"allow_abbrev": False, "exit_on_error": False},
                },
                args=words,
                **options,
            )
        except UserError as error:
            raise UserError(with_place(str(error), self.layers)) from error
        except (MisconfigurationException, RuntimeError) as error:
            if not is_users(error):
                raise
            raise UserError(with_place(message(error), self.layers)) from error

    # -- the parser --------------------------------------------------------------------------------------------------
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that was asked for, and the arguments of the Trainer's method that are no options.

        `weights_only` is none, since it is never anything but true.
        """
        own = {"validate": {"verbose"}, "test": {"verbose"}, "predict": {"return_predictions"}}  # set by the command
        skipped = LightningCLI.subcommands()[self.command] | {"weights_only"}
        return {self.command: skipped | own.get(self.command, set())}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        _add_own_keys(parser)

    def prepare_parser(self, parser: LightningArgumentParser, command: str) -> None:
        """Gives a command's parser its help."""
        describe(parser, command)

    # -- reading -----------------------------------------------------------------------------------------------------
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the words; what cannot be parsed becomes one message.

        Raises:
            UserError: a key, value, class or file that cannot be; or a saved config that names code of its own.
        """
        words = list(args)
        self.keys = table_of(self.parser_of(self.command))
        if not {"-h", "--help"} & set(words):
            self.layers = layers_of(words[1:])
        if self.saved is not None:
            self.saved.check(self.keys)
        self._begin_with_the_class()
        try:
            self.config = parser.parse_args(words)
        except argparse.ArgumentError as error:
            self._check_help(words)
            raise UserError(explain(error.message or str(error), self.layers, self.keys, self.command)) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # of odd values; or a mistake of ours
            said = complaint(self.layers, self.keys)
            if said is None:
                raise
            raise UserError(said) from error
        if (said := complaint(self.layers, self.keys, parsed=True)) is not None:
            raise UserError(said)
        settle_paths(self.config[self.command], self.keys, self.layers)

    def _begin_with_the_class(self) -> None:
        """The backbone's class that was asked for begins from its own defaults, not from those of the usual one."""
        named = [name for layer in self.layers if (name := _class_named(layer.content)) is not None]
        if not named:
            return
        try:
            load_class(named[-1], Backbone, "")
        except UserError:
            return  # said where it stands
        parser = self.parser_of(self.command)
        parser.set_defaults({"model.backbone": {"class_path": named[-1]}})
        self.keys = table_of(parser)

    def _check_help(self, words: list[str]) -> None:
        """`--data.help CIFAR10`: says which classes there are."""
        for option, name in options_of(words[1:]):
            place: Any = self.keys
            for key in option.removeprefix("--").removesuffix(".help").split("."):
                place = place.get(key) if isinstance(place, dict) else None
            if option.endswith(".help") and name and isinstance(place, Option):
                load_class(name, bases_of(place.type), option, kind_of(bases_of(place.type)))

    def parse_ckpt_path(self) -> None:
        config = self.config[self.command]
        if config.ckpt_path and "://" in str(config.ckpt_path):
            raise UserError(f"--ckpt_path {config.ckpt_path}: checkpoints are read from files: download it first")
        check_name(config.name)
        if self.command != "fit" and config.ckpt_path in ("last", "best"):
            root = Path(config.runs_dir) / config.name
            found = named_checkpoint(config.ckpt_path, root, config.version)
            # what is measured belongs to the run whose weights these are
            config.ckpt_path, config.version = str(found), RunFolder(found.parent.parent).version
        if config.ckpt_path not in (None, "last") and (reason := damage(Path(config.ckpt_path))):
            raise UserError(f"--ckpt_path {config.ckpt_path}: {reason}")
        # For fit the config is the truth; Lightning would silently put the checkpoint's values in its place
        if self.command == "fit":
            return
        if not config.ckpt_path:
            rank_zero_info(f"no --ckpt_path and no --run: {self.command} takes a transcoder that was not trained")
            return
        parameters = read_parameters(Path(config.ckpt_path), self.keys, trusted=self.trusted)
        if self.saved is None:  # a run's own config says the same, and what is given beside it wins
            self._take_parameters(parameters)

    def _take_parameters(self, parameters: dict[str, Any]) -> None:
        """Puts the model that a checkpoint was trained with in the place of the config's, but for what options say."""
        for layer in self.layers:
            *above, last = layer.option.removeprefix("--").split(".")
            if layer.file is None and above[:1] == ["model"]:
                table: Any = parameters
                for key in above[1:]:
                    table = _below(table, key).get(key)
                _below(table, last).pop(last, None)
        try:
            self.config = self.parser.parse_object({self.command: {"model": parameters}}, self.config)
        except argparse.ArgumentError as error:
            said = explain(str(error), [], self.keys, self.command)
            path = self.config[self.command].ckpt_path
            raise UserError(f"--ckpt_path {path} holds a model of another version: {said}") from error

    def instantiate_classes(self) -> None:
        """Makes model, data, callbacks and trainer; what their classes do not accept becomes one message."""
        with users_mistakes():
            super().instantiate_classes()
        path = self.config[self.command].get("ckpt_path")
        if self.command != "fit" and path and not self.model.clip.has_text:
            self.model.clip.use_head(ClassHead.load(Path(path).parent.parent))

    def arguments_of(self, command: str) -> dict[str, Any]:
        """What the Trainer's method gets beside the options."""
        return {"weights_only": True}

    def before_instantiate_classes(self) -> None:
        """Checks everything that can be checked before a backbone, perhaps a large download, is loaded."""
        config = self.config[self.subcommand]
        check_config(config)
        if self.saved is not None:
            self.saved.check_data(config, self.layers)
        check_data(config)
        if self.command == "fit":
            check_readable(self.parser_of(self.command), config)

        # written out, so that the saved config.yaml says which seeds these were
        model, data = config.model, config.data
        model.seed = seeds.resolve(model.seed)
        if issubclass(data_class(config), modules.WebImages):
            data.init_args.seed = seeds.resolve(data.init_args.seed)

        arguments = model.backbone.get("init_args") or Namespace()  # type: ignore[no-untyped-call]
        on_cpu = config.trainer.accelerator in ("cpu", "auto") and not torch.cuda.is_available()
        if on_cpu and arguments.get("precision") == "bf16" and not cpu_multiplies(torch.bfloat16):
            rank_zero_info(
                "this CPU has no bf16 instructions, the backbone would be about 8 times slower in it: "
                "model.backbone.init_args.precision: fp32 is taken instead of bf16"
            )
            arguments.precision = "fp32"

        parallel = model.parallel
        if self.subcommand in ("test", "predict") and parallel.feature > 1:
            # their collectors read single features, of a transcoder that every process has whole
            rank_zero_info(f"{self.subcommand} takes the whole transcoder on every process: model.parallel.feature = 1")
            parallel.feature = 1

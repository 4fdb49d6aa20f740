"""Each of Lightning's private names that `clt_lightning/compat.py` leans on: there, and doing what we take it to do."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clt_lightning import compat

PACKAGE = Path(compat.__file__).parent


class Model(BoringModel):
    """64 random vectors, one per batch."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.randn(6, 32))  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.randn(2, 32))  # type: ignore[arg-type]


class Looks(pl.Callback):
    """Calls a function after every batch and at every validation, and keeps what it gives."""

    def __init__(self, look: Any) -> None:
        self.look, self.batches, self.validations = look, [], []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.batches.append(self.look(trainer))

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.validations.append((trainer.global_step, trainer.fit_loop.total_batch_idx + 1))


def fit(callback: pl.Callback, whole: bool = False, folder: Path | None = None, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 2,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(callbacks=[callback], **(settings | options))
    if whole:
        compat.whole_steps(trainer)
    trainer.fit(Model())
    return trainer


# -- where a fit is --------------------------------------------------------------------------------------------------


def test_should_accumulate() -> None:
    looks = Looks(compat.whole_step)
    fit(looks, accumulate_grad_batches=4, max_epochs=1)
    assert looks.batches == [False, False, False, True, False, True]  # Lightning steps at the end of an epoch


def test_should_check_val_fx_and_data_fetcher() -> None:
    looks = Looks(compat.validation_follows)
    fit(looks, val_check_interval=4, check_val_every_n_epoch=None)
    assert [i for i, follows in enumerate(looks.batches, 1) if follows] == [4, 8, 12]
    assert [batch for _, batch in looks.validations] == [4, 8, 12]


def test_num_ready_batches_reached() -> None:
    looks = Looks(compat.was_last_batch)
    fit(looks)
    assert looks.batches == [False, False, False, False, False, True] * 2


def test_batches_that_stepped(tmp_path: Path) -> None:
    class Logs(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("x", 1.0)

    logger = TensorBoardLogger(tmp_path)
    logged: list[int | None] = []
    logger.log_metrics = lambda metrics, step=None: logged.append(step)  # type: ignore[method-assign]
    trainer = pl.Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    compat.set_logged_step(trainer, 123)
    trainer.validate(Logs(), verbose=False)
    assert logged == [123]


def test_val_loop() -> None:
    class Validates(pl.Callback):
        seen: tuple[int, bool, bool] | None = None

        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            looks = Looks(None)
            trainer.callbacks.append(looks)  # type: ignore[attr-defined]
            compat.validate(trainer)
            trainer.callbacks.remove(looks)  # type: ignore[attr-defined]
            self.seen = len(looks.validations), trainer.training, module.training

    callback = Validates()
    fit(callback, max_epochs=1)
    assert callback.seen == (1, True, True)


# -- loops -----------------------------------------------------------------------------------------------------------


def test_training_epoch_loop_validates_between_steps() -> None:
    plain, whole = Looks(None), Looks(None)
    for looks in (plain, whole):
        looks.look = lambda trainer: None
        fit(looks, looks is whole, accumulate_grad_batches=4, val_check_interval=3, check_val_every_n_epoch=None)
    # steps end after batches 4 and 6 of an epoch
    assert [batch for _, batch in plain.validations] == [3, 6, 9, 12]
    assert [batch for _, batch in whole.validations] == [4, 6, 10, 12]


def test_training_epoch_loop_stops_between_steps() -> None:
    def stop(trainer: pl.Trainer) -> int:
        trainer.should_stop = True
        return trainer.fit_loop.total_batch_idx + 1

    for whole, batches in ((False, [1]), (True, [1, 2, 3, 4])):
        looks = Looks(stop)
        fit(looks, whole, accumulate_grad_batches=4)
        assert looks.batches == batches


def test_fit_loop_does_the_end_of_a_resumed_run(tmp_path: Path) -> None:
    class Ends(pl.Callback):
        ends = 0

        def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            Ends.ends += 1
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit(Ends(), max_epochs=1)
    for whole, ends in ((False, 1), (True, 2)):
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, callbacks=[Ends()]
        )
        if whole:
            compat.whole_steps(trainer)
        trainer.fit(Model(), ckpt_path=tmp_path / "last.ckpt")
        assert Ends.ends == ends
        assert trainer.global_step == 6


# -- callbacks -------------------------------------------------------------------------------------------------------


def test_model_checkpoints_own_hooks(tmp_path: Path) -> None:
    told: list[str] = []

    class Files(compat.CheckpointFiles):
        def before_file(self, trainer: pl.Trainer, filepath: str) -> None:
            told.append(f"before {Path(filepath).name}")

        def after_last(self, trainer: pl.Trainer) -> None:
            told.append("after last")

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if trainer.global_step == 3:
                self.write_last_now(trainer)

    files = Files(tmp_path, "best-{step}", monitor="x", save_last=True, auto_insert_metric_name=False)

    class Logs(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("x", 1.0)

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[files], max_epochs=1)
    trainer.fit(Logs())
    # writing last.ckpt does not count as the look for a best one
    assert told == ["before last.ckpt", "after last", "before best-6.ckpt", "before last.ckpt", "after last"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6


def test_check_on_train_epoch_end() -> None:
    stopping = EarlyStopping("val/x")
    compat.stop_after_validations(stopping)
    stopping.setup(pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False), Model(), "fit")
    trainer: Any = None
    stopping.on_train_epoch_end(trainer, Model())  # looks at nothing there
    assert stopping._check_on_train_epoch_end is False


# -- command line, logger, module, processes -------------------------------------------------------------------------


def test_hooks_of_the_command_line() -> None:
    seen: list[str] = []

    class Commands(compat.CommandLine):
        def prepare_parser(self, parser: LightningArgumentParser, command: str) -> None:
            seen.append(command)
            parser.add_argument("--own", type=int, default=3)

        def parse_ckpt_path(self) -> None:
            seen.append("checkpoint")
            super().parse_ckpt_path()

        def fit(self, **kwargs: Any) -> None:
            assert self.parser_of("fit").get_defaults().own == 3

    cli = Commands(Model, save_config_callback=None, args=["fit", "--own", "5", "--trainer.logger", "false"])
    assert seen == [*LightningCLI.subcommands(), "checkpoint"]
    assert cli.config.fit.own == 5


def test_parser_and_arguments_of_a_command() -> None:
    """A command's parser is finished once, with all options, and its method gets the arguments."""
    seen: list[tuple[str, bool]] = []

    class Line(compat.CommandLine):
        def prepare_parser(self, parser: Any, command: str) -> None:
            seen.append((command, "--ckpt_path" in parser._option_string_actions))

        def arguments_of(self, command: str) -> dict[str, Any]:
            return {"verbose": command}

    line = Line(Model, args=["validate"], save_config_callback=None, run=True, trainer_class=Quiet)
    assert ("validate", True) in seen
    assert len(seen) == len(line.subcommands())
    assert Quiet.got["verbose"] == "validate"


class Quiet(pl.Trainer):
    """Takes note of what it is asked, and does nothing."""

    got: ClassVar[dict[str, Any]] = {}

    def validate(self, model: Any = None, ckpt_path: Any = None, **arguments: Any) -> Any:  # type: ignore[override]
        Quiet.got.update(arguments)


def test_kwargs_of_the_tensorboard_logger(tmp_path: Path) -> None:
    for start, steps in ((None, (0, 1, 2, 3)), (2, (2, 3, 4))):
        logger = TensorBoardLogger(tmp_path, version=0)
        if start is not None:
            compat.purge_from(logger, start)
        for step in steps:
            logger.log_metrics({"x": float(step)}, step)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    assert [event.step for event in events.Scalars("x")] == [0, 1, 2, 3, 4]


def test_trainer_of_a_module() -> None:
    module = Model()
    assert compat.trainer_of(module) is None
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    module.trainer = trainer
    assert compat.trainer_of(module) is trainer


def test_ddp_kwargs() -> None:
    strategy = DDPStrategy()
    compat.set_process_group(strategy, "a group")
    assert strategy._ddp_kwargs == {"process_group": "a group"}
    assert "**self._ddp_kwargs" in inspect.getsource(DDPStrategy._setup_model)


def test_lightning_module_of_a_strategy() -> None:
    strategy = DDPStrategy()
    strategy.connect(Model())
    assert strategy.lightning_module is not None
    compat.forget_module(strategy)
    assert strategy.lightning_module is None


def test_optimizer_to_device() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    compat.optimizer_to_device(optimizer, torch.device("cpu"))
    assert optimizer.state[weight]["exp_avg"].device.type == "cpu"


def test_procs_of_the_launcher() -> None:
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    assert compat.children(trainer) == []
    source = inspect.getsource(_SubprocessScriptLauncher)
    # the observer looks into the very list that is emptied
    assert "_launch_process_observer(self.procs)" in source
    assert "self.procs.append(" in source


# -- all of them are here --------------------------------------------------------------------------------------------

PRIVATE = {
    name
    for owner in (
        *(pl.Trainer, pl.LightningModule, LightningCLI, ModelCheckpoint, EarlyStopping, TensorBoardLogger, DDPStrategy),
        *(_FitLoop, _TrainingEpochLoop),
    )
    for cls in owner.__mro__
    if cls.__module__.startswith("lightning")
    for name in (*vars(cls), *re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(cls)))
    if name.startswith("_") and not name.startswith("__")
}


def own_names(tree: ast.Module) -> set[str]:
    """Private names that a file gives itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_lightnings_private_names_are_used_in_one_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "compat.py" or "lightning" not in text:
        return
    tree = ast.parse(text)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not (used & PRIVATE) - own_names(tree), "take it through clt_lightning/compat.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning."):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]


def test_options_of_a_parser() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("word")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--run")
    group.add_argument("-c", "--config")
    assert [action.option_strings[-1] for action in compat.options_of(parser)] == ["--help", "--run", "--config"]


def test_lightning_stays_below_the_next_minor_version() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = [r for r in project["dependencies"] if re.match(r"lightning[<>=]", r)]
    assert re.search(r"<2\.7\b", bound), bound

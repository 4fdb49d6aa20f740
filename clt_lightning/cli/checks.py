"""What is looked at in a parsed config before anything large is loaded: settings that could not work."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from clt_lightning.cli.failures import message
from clt_lightning.core.classes import load_class, nearest
from clt_lightning.core.errors import UserError
from clt_lightning.data.sets import modules

#: Words of torch's messages, and the argument that they are about
_ARGUMENTS = {
    "learning rate": "lr",
    "beta": "betas",
    "epsilon": "eps",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
}
_HALF = {"bf16-true": "bf16-mixed", "16-true": "16-mixed"}


def check_config(config: Namespace) -> None:
    """Everything that can be said without loading a model or data.

    Raises:
        UserError: a setting that cannot work; the message begins with its key.
    """
    check_name(config.name)
    _check_words(config.trainer)
    _check_precision(config.trainer.precision)
    _check_machine(config.trainer)
    _check_callbacks(config.trainer.callbacks)
    _check_optimizer(config.model.optimizer)
    words = config.evaluate.features.words
    if config.evaluate.enabled and words is not None and not os.path.isfile(words):
        raise UserError(f"evaluate.features.words: there is no file {words}")


def check_name(name: str) -> None:
    """Whether a run's name is one plain folder name.

    Raises:
        UserError: it is empty, or leads out of `runs_dir`.
    """
    if not name.strip() or name in (".", "..") or any(sign in name for sign in ("/", "\\", "\0", "\n")):
        raise UserError(
            f"name: {name!r} is no name of a run: give one plain folder name, such as vitb32 (--runs_dir says where)"
        )


def data_class(config: Namespace) -> type[lightning.LightningDataModule]:
    """The class of a config's data."""
    return load_class(config.data.class_path, lightning.LightningDataModule, "data", "data set")


def make_data(config: Namespace) -> Any:
    """The data module of a parsed config, with the objects that its arguments are."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    alone = Namespace(data=config.data.clone())  # type: ignore[no-untyped-call]
    return parser.instantiate_classes(alone).data


def check_data(config: Namespace) -> None:
    """Whether the data's folder is there.

    Raises:
        UserError: it is not; the message says which command makes it.
    """
    cls = data_class(config)
    if issubclass(cls, modules.WebImages):
        make_data(config).check_root()


def _check_words(trainer: Namespace) -> None:
    known: dict[str, Callable[[], list[str]]] = {
        "accelerator": lambda: ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
        "strategy": lambda: ["auto", *StrategyRegistry.available_strategies()],
        "profiler": lambda: ["simple", "advanced", "pytorch", "xla"],
        "gradient_clip_algorithm": lambda: ["norm", "value"],
    }
    for key, words in known.items():
        value = trainer.get(key)
        if isinstance(value, str) and value not in words():
            close = nearest(value, words())
            raise UserError(
                f"trainer.{key}: there is no {key.replace('_', ' ')} {value!r}"
                f"{f'; did you mean {close[0]}?' if close else ''} (there are: {', '.join(dict.fromkeys(words()))})"
            )


def _check_precision(precision: Any) -> None:
    if precision in _HALF:
        raise UserError(
            f"trainer.precision: {precision} would keep the transcoder's weights in 16 bits, which its kernels and "
            f"thresholds are not made for: take {_HALF[precision]}, which keeps them in 32, or 32-true"
        )


def _check_machine(trainer: Namespace) -> None:
    accelerator, devices = trainer.accelerator, trainer.devices
    if not isinstance(accelerator, str):
        return
    if accelerator in ("gpu", "cuda", "mps", "tpu"):
        kinds = ("cuda", "mps") if accelerator == "gpu" else (accelerator,)
        known = [AcceleratorRegistry[kind]["accelerator"] for kind in kinds if kind in AcceleratorRegistry]
        if not any(found.is_available() for found in known):
            raise UserError(
                f"trainer.accelerator: {accelerator} is asked for, and torch finds none on this machine: "
                "--trainer.accelerator=cpu runs on the CPU"
            )
    words = ("auto", "-1")
    if isinstance(devices, str) and devices not in words and not all(d.strip().isdigit() for d in devices.split(",")):
        raise UserError(f"trainer.devices: expected a number, a list of numbers or auto, got {devices!r}")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    count = int(devices) if isinstance(devices, int | str) and str(devices).isdigit() else 0
    cores = os.cpu_count() or 1
    if on_cpu and count > cores:
        raise UserError(
            f"trainer.devices: {count} processes on a CPU with {cores} cores would stand in each other's way: take "
            f"--trainer.devices={cores} or fewer (one process uses all cores)"
        )
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available() and count > torch.cuda.device_count():
        raise UserError(
            f"trainer.devices: {count} GPUs are asked for, and this machine has {torch.cuda.device_count()}"
        )


def _check_callbacks(callbacks: Any) -> None:
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    for callback in listed:
        name = callback.get("class_path", "") if isinstance(callback, Namespace) else ""
        if name.rpartition(".")[2] == "LearningRateFinder":
            raise UserError(
                "trainer.callbacks: LearningRateFinder changes an attribute of the model that this one does not have: "
                "try a few values of --model.optimizer.init_args.lr in short runs instead (--trainer.max_steps=200)"
            )


def _check_optimizer(optimizer: Any) -> None:
    """Makes the optimizer for a weight of no account: a negative learning rate is said before CLIP is loaded."""
    if not isinstance(optimizer, Namespace):
        return
    arguments = dict(vars(optimizer.init_args) if optimizer.get("init_args") else {}) | dict(
        optimizer.get("dict_kwargs") or {}
    )
    if any(isinstance(value, Namespace) for value in arguments.values()):
        return
    cls = load_class(optimizer.class_path, torch.optim.Optimizer, "model.optimizer", "optimizer")
    try:
        cls([torch.nn.Parameter(torch.zeros(2, 2))], **arguments)
    except (ValueError, TypeError) as error:
        said = message(error)
        argument = next((f".{key}" for word, key in _ARGUMENTS.items() if word in said and key in arguments), "")
        raise UserError(f"model.optimizer.init_args{argument}: {cls.__name__}: {said}") from error

"""results.json: what was run, on what, and what came out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

import clt_lightning
from clt_lightning.callbacks.base import run_folder, say_not_written, weights_at
from clt_lightning.callbacks.measuring import measuring
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import write_json

SCHEMA = 1
_PACKAGES = (
    "clt-lightning",
    "torch",
    "torchvision",
    "lightning",
    "open_clip_torch",
    "torchmetrics",
    "webdataset",
    "numpy",
)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers depend on; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["torch"] = torch.__version__  # with the build (+cpu, +cu132), which the package's own metadata lack
    return found


def git_state(source: Path | None = None) -> dict[str, Any] | None:
    """Commit of the checkout that the package runs from.

    Args:
        source: a file of the package; default: its `__init__.py`.

    Returns:
        `commit` and `dirty` (changes that are not committed); None for an installed package, also one that lies in
        somebody else's checkout (a virtual environment there).
    """
    source = source or Path(clt_lightning.__file__)

    def git(*args: str) -> str | None:
        try:
            # without the index's lock, which a `status` that is stopped would leave behind
            command = ["git", "--no-optional-locks", "-C", str(source.parent), *args]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def class_list_hash(classnames: Sequence[str]) -> str:
    """SHA-256 of the class names, in order, a line each."""
    return hashlib.sha256("\n".join(classnames).encode()).hexdigest()


def describe_data(datamodule: Any) -> dict[str, Any] | None:
    """What is recorded of the data: the module's own description, class list, templates; None without a data module."""
    if datamodule is None:
        return None
    describe = getattr(datamodule, "describe", None)
    names = getattr(datamodule, "classnames", None)
    templates = getattr(datamodule, "templates", None)
    return {
        "class": f"{type(datamodule).__module__}.{type(datamodule).__qualname__}",
        "description": describe() if callable(describe) else None,
        "classes": len(names) if names else None,
        "class_list_sha256": class_list_hash(names) if names else None,
        "templates": list(templates) if templates else None,
    }


class RunRecord(pl.Callback):
    """Keeps `<run>/results.json`: the training's record and the numbers of its last validation and test.

    Schema 1: `schema` (1), `run` (the training: time in UTC, command, seed, versions, git, hardware, clip, transcoder,
    data, and `finished`, the time when it ended or null) and `metrics` with a table `val` and `test` each: `step`,
    `epoch` and `values` by tag, without the stage in front, and `run`, the record of the command, where that was not
    the training. What `Evaluate` has written stands there alone; `evaluation` names its split then. NaN and infinities
    are null. Entries that others have written into the file are left as they are.
    """

    def __init__(self) -> None:
        self._run: dict[str, Any] | None = None
        self._folder: Path | None = None
        self._begun = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if not self._begun:
            self._begun = True
            if run_folder(trainer) is not None:
                self._write(trainer, pl_module, None)  # that it runs, and is not finished

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module, "test")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module, None)  # a run without validation has a record, too

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._folder is not None and trainer.is_global_zero:
            content = _read(self._folder / "results.json")
            content["run"]["finished"] = _now()
            write_json(self._folder / "results.json", content)

    def _write(self, trainer: pl.Trainer, pl_module: Any, stage: str | None) -> None:
        self._folder = folder = run_folder(trainer)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if folder is None:
            if stage is None or not fitting:
                say_not_written(trainer, "results.json")
            return
        if not trainer.is_global_zero:
            return
        path = folder / "results.json"
        content = _read(path)
        content["schema"] = SCHEMA
        if self._run is None:
            self._run = describe_run(trainer, pl_module)
        if fitting:
            content["run"] = self._run | {"step": trainer.global_step, "finished": None}
        metrics = content.setdefault("metrics", {})
        if stage is not None:
            prefix = f"{stage}/"
            stored = {name for c in measuring(trainer) for name in c.stored} if stage == "test" else set()
            step, epoch = weights_at(trainer)
            metrics[stage] = {
                "step": step,
                "epoch": epoch,
                "values": {
                    name: float(value)
                    for tag, value in sorted(trainer.callback_metrics.items())
                    if tag.startswith(prefix) and (name := tag.removeprefix(prefix)) not in stored
                },
            }
            if stored:  # a number stands once, and so does the command's record
                metrics[stage]["evaluation"] = stage
            elif not fitting:
                metrics[stage]["run"] = self._run
        write_json(path, content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_run(trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
    """The record of a command: everything that its numbers depend on and that a reader would ask for."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    device = pl_module.device
    transcoder = pl_module.transcoder
    return {
        "started": _now(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": int(seed) if seed else None,
        "versions": versions(),
        "git": git_state(),
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
        },
        "precision": str(trainer.precision),
        "clip": pl_module.clip.describe(),
        "transcoder": transcoder.config() if hasattr(transcoder, "config") else None,
        "attention": None if getattr(pl_module, "attention", None) is None else pl_module.attention.config(),
        "data": describe_data(getattr(trainer, "datamodule", None)),
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}): move it away, and it will be written anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a table: move it away, and it will be written anew")
    return content

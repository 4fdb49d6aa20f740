"""A run's own config, which others may have written: nothing that it names is imported before it was looked at."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from clt_lightning.cli.checks import data_class, make_data
from clt_lightning.cli.explain import resolve_class
from clt_lightning.cli.layers import Layer
from clt_lightning.cli.schema import TABLE, Leaf, Problem, Table, alternatives, bases_of, is_callable, walk
from clt_lightning.core.config_file import ConfigFile, Keys, read_config
from clt_lightning.core.errors import UserError
from clt_lightning.data.sets import modules
from clt_lightning.runs.checkpoint_io import read_checkpoint

_WHY = "this config came with the run, and it would run code of its choice. If you trust it, add --trust_config"


@dataclass(frozen=True)
class Saved:
    """The config.yaml of a run that `--run` names.

    Attributes:
        file: the config.
        trusted: whether the user vouches for it (`--trust_config`).
    """

    file: ConfigFile
    trusted: bool

    @staticmethod
    def read(path: Path, trusted: bool) -> Saved:
        """Reads the file.

        Raises:
            UserError: it cannot be read.
        """
        return Saved(read_config(path), trusted)

    def check(self, keys: Table) -> None:
        """Refuses a config that names code which does not come with this package, Lightning or torch.

        Raises:
            UserError: with line and key.
        """
        if not self.trusted:
            for place, message in complaints(self.file.content, keys, Path(self.file.name).parent):
                raise UserError(f"{self.file.where(place)}: {'.'.join(map(str, place))}: {message}")

    def without_leave(self, words: list[str]) -> list[str]:
        """The words with the config's leave to run shell commands taken back: it comes from who runs the command."""
        data = self.file.content.get("data")
        at = words.index(self.file.name) + 1
        taken = ["--data.init_args.allow_pipe", "false"] if "allow_pipe" in repr(data) else []
        return [*words[:at], *taken, *words[at:]]

    def check_data(self, config: Namespace, layers: Sequence[Layer]) -> None:
        """Whether the data are still where the run had them.

        Raises:
            UserError: they are not, and the user named no other place.
        """
        cls = data_class(config)
        named = any(layer.file is None and layer.option in ("--data.init_args.root", "--data.root") for layer in layers)
        if not named and issubclass(cls, modules.WebImages):
            make_data(config).require_root()


def read_parameters(checkpoint: Path, keys: Table, *, trusted: bool) -> dict[str, Any]:
    """The model that a checkpoint was trained with, as a config has it under `model`.

    Raises:
        UserError: the parameters name code, with the key; or they are no table.
    """
    parameters = read_checkpoint(checkpoint).get("hyper_parameters", {})
    if not isinstance(parameters, dict):
        raise UserError(f"--ckpt_path {checkpoint} is no checkpoint of a training run: it has no table of parameters")
    for place, message in () if trusted else complaints({"model": parameters}, keys, checkpoint.parent):
        raise UserError(f"--ckpt_path {checkpoint}: {'.'.join(map(str, place))}: {message}")
    return parameters


def complaints(content: Mapping[Any, Any], keys: Table, folder: Path) -> Iterator[tuple[Keys, str]]:
    """Keys of a config that somebody else wrote which would have code run, or a file read as a config, and why.

    Imports modules of `KNOWN_PACKAGES` alone.

    Args:
        content: the config.
        keys: what it may hold.
        folder: where it lies, and where jsonargparse would look for files that it names.
    """
    resolve = functools.partial(resolve_class, trusted=False)
    for found in walk(content, keys, resolve):
        if isinstance(found, Problem):
            yield found.keys, found.message
        elif (reason := _dangerous(found, folder)) is not None:
            yield found.keys, f"{reason}: {_WHY}"


def _dangerous(leaf: Leaf, folder: Path) -> str | None:
    kinds = alternatives(leaf.type)
    if _names_class(leaf.value):
        return "a class_path stands where no class belongs"
    if not isinstance(leaf.value, str):
        return "expected a table of keys" if leaf.type is TABLE and leaf.value is not None else None
    if leaf.type is TABLE:
        return f"{leaf.value!r} would be read as a file"
    if bases_of(leaf.type) and ((folder / leaf.value).is_file() or Path(leaf.value).is_file() or "." in leaf.value):
        return f"{leaf.value!r} would be read as a file"
    if any(is_callable(kind) or kind in _CODE or typing.get_origin(kind) is type for kind in kinds):
        return f"{leaf.value!r} would be imported"
    return None


_CODE = (type, types.ModuleType, types.UnionType, types.GenericAlias, types.FunctionType)


def _names_class(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_path" in value or any(_names_class(entry) for entry in value.values())
    return isinstance(value, list | tuple) and any(_names_class(entry) for entry in value)

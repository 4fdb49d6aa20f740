"""Paths in a config: variables and `~` put in, and absolute, so that the config means the same from every folder."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from clt_lightning.cli.explain import place, resolve_class
from clt_lightning.cli.layers import Layer
from clt_lightning.cli.schema import Leaf, Table, alternatives, element, walk
from clt_lightning.core.config_file import Keys
from clt_lightning.core.errors import UserError
from clt_lightning.core.paths import expand

#: Options that take a path or the name of something that comes with the package, or with open_clip
_NAME_OR_PATH = ("pretrained", "class_list", "ckpt_path")
#: Options of other libraries whose type is plain text, and which are folders
_FOLDER_NAME = re.compile(r"(^|_)(dir|dirpath|directory|folder)$")
_LOCAL_FOLDER = "local-dir:"


def settle_paths(config: Namespace, table: Table, layers: Sequence[Layer]) -> None:
    """Expands every path of a parsed config and makes it absolute, in place.

    Which options are paths, their types say: `str | Path`, as in Lightning's own signatures.

    Raises:
        UserError: a variable that is not set; the message names it, the key, and file and line.
    """
    found = [leaf for leaf in walk(vars(config), table, resolve_class) if isinstance(leaf, Leaf)]
    for leaf in found:
        name = str(leaf.keys[-1])
        if not (is_path(leaf.type) or (_FOLDER_NAME.search(name) and str in alternatives(leaf.type))):
            continue
        change = _name_or_path if name in _NAME_OR_PATH else absolute
        try:
            changed = _changed(leaf.value, leaf.type, ".".join(map(str, leaf.keys)), change)
        except UserError as error:
            raise UserError(f"{place(layers, leaf.keys)}{error}") from error
        if changed != leaf.value:
            _put(config, leaf.keys, changed)


def is_path(hint: Any) -> bool:
    """Whether a type is that of a path, of several, or of either."""
    for kind in alternatives(hint):
        inner = element(kind)
        if is_path(inner) if inner is not None else inspect.isclass(kind) and issubclass(kind, os.PathLike):
            return True
    return False


def absolute(path: str) -> str:
    """The path from the root of the file system; addresses stay as they are."""
    if "://" in path or path.startswith("pipe:") or path.startswith("{") or not path:
        return path
    if path.startswith(_LOCAL_FOLDER):
        return _LOCAL_FOLDER + absolute(path.removeprefix(_LOCAL_FOLDER))
    # not os.path.abspath: `..` behind a link is another folder than the one before it
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path.removeprefix("./"))


def _name_or_path(text: str) -> str:
    named = text in ("demo", "openai", "cmc", "last", "best") and not os.path.isfile(text)
    return absolute(text) if not named and (text.startswith(_LOCAL_FOLDER) or os.path.exists(text)) else text


def _changed(value: Any, hint: Any, name: str, change: Callable[[str], str]) -> Any:
    if isinstance(value, list | tuple):
        paths = any(is_path(element(kind)) for kind in alternatives(hint) if element(kind) is not None)
        return [_changed(entry, str, name, change) for entry in value] if paths else value
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if text.startswith(_LOCAL_FOLDER):
        return change(_LOCAL_FOLDER + expand(text.removeprefix(_LOCAL_FOLDER), name))
    return change(expand(text, name))


def _put(config: Any, keys: Keys, value: Any) -> None:
    for key in keys[:-1]:
        config = config[key]
    config[keys[-1]] = value

"""Where a config differs from the defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from typing import Any

from jsonargparse import Namespace

from clt_lightning.cli.config_cli import config_keys
from clt_lightning.cli.schema import Option, Table, class_table
from clt_lightning.core.classes import load_class
from clt_lightning.core.errors import UserError

#: Key, default (None: there is none) and the config's own value, as text
Change = tuple[str, str | None, str]
#: What belongs to a run and not to its recipe
_OWN = frozenset({"version", "ckpt_path", "config"})


def config_changes(config: Mapping[str, Any]) -> list[Change]:
    """What a run's config sets to something else than the defaults; of a class, its arguments beside its own defaults.

    Args:
        config: the content of config.yaml.
    """
    return list(_changes(config, config_keys(), ""))


def _changes(config: Mapping[str, Any], table: Table, above: str) -> Iterator[Change]:
    for key, value in config.items():
        name, entry = f"{above}{key}", table.get(key)
        if name in _OWN:
            continue
        if isinstance(entry, dict):
            if isinstance(value, Mapping):
                yield from _changes(value, entry, f"{name}.")
            continue
        default = _plain(entry.default) if isinstance(entry, Option) else None
        if isinstance(value, Mapping) and "class_path" in value:
            yield from _class_changes(value, default, name)
        elif isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from _changes(value, {k: Option(Any, v) for k, v in default.items()}, f"{name}.")
        elif not _same(value, default):
            yield name, None if entry is None else _text(default), _text(value)


def _class_changes(value: Mapping[str, Any], default: Any, name: str) -> Iterator[Change]:
    path = str(value["class_path"])
    usual = default.get("class_path") if isinstance(default, Mapping) else None
    if usual is None or usual.rsplit(".", 1)[-1] != path.rsplit(".", 1)[-1]:
        yield name, usual, path
    try:
        table = class_table(load_class(path, object, name, trusted=False))
    except UserError:
        table = {}  # a class of the user's own: nothing of theirs is imported to tell its defaults
    yield from _changes(value.get("init_args") or {}, table, f"{name}.")


def _plain(value: Any) -> Any:
    """A default as a config would hold it."""
    if isinstance(value, Namespace):
        return {k: _plain(v) for k, v in vars(value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    return fspath(value) if isinstance(value, PathLike) else value


def _same(value: Any, default: Any) -> bool:
    value = _plain(value)
    return value == default and isinstance(value, bool) == isinstance(default, bool)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)

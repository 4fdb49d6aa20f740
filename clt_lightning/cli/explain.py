"""From what a parser could not take to a message of a few lines: file and line, the key, and what is near it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clt_lightning.cli.layers import Layer
from clt_lightning.cli.schema import TABLE, Leaf, Option, Table, places_of, walk
from clt_lightning.cli.values import misfit
from clt_lightning.core.classes import load_class
from clt_lightning.core.config_file import Keys, read_config

#: What classes of a kind are called
_KINDS = {
    "LightningDataModule": "data set",
    "Activation": "activation",
    "LossTerm": "loss term",
    "Optimizer": "optimizer",
    "Callback": "callback",
    "Logger": "logger",
    "Strategy": "strategy",
    "Accelerator": "accelerator",
    "Profiler": "profiler",
}


def explain(error: str, layers: Sequence[Layer], table: Table, command: str = "fit") -> str:
    """What is wrong with a config that could not be parsed.

    Args:
        error: the parser's own words, for what is not found out otherwise.
        layers: what the user gave.
        table: the keys that there are.
        command: the command, for what it cannot do without.
    """
    return complaint(layers, table) or _shortened(error, layers, command)


def complaint(layers: Sequence[Layer], table: Table, *, parsed: bool = False) -> str | None:
    """The first thing in a config that cannot stand where it stands; None if there is none.

    Args:
        layers: what the user gave.
        table: the keys that there are.
        parsed: whether the parser took it: then only what it passes over in silence is looked for, keys that do not
            exist and values in the place of tables.
    """
    current: dict[Keys, type] = {}
    return next((said for layer in layers for said in _complaints(layer, table, current, parsed)), None)


def with_place(message: str, layers: Sequence[Layer]) -> str:
    """A message that begins with a key, or a class and an argument, led by the file and line where that is set."""
    key = re.match(r"(?:--)?([a-z_]\w*(?:\.\w+)+|name|runs_dir|version)\b", message)
    argument = re.match(r"([A-Z]\w+): (\w+)\b", message)
    if argument is not None and (where := _class_line(argument[1], layers)) is not None:
        return f"{where}: {message}"
    if key is None:
        return message
    end = f".{_short(key[1])}"
    for layer in reversed(layers):
        if layer.file is None and f".{_short(layer.option.removeprefix('--'))}".endswith(end):
            return message  # the user has just typed it
        for keys in layer.file.lines if layer.file is not None else ():
            if f".{_short(_dotted(keys))}".endswith(end):
                return f"{layer.where(keys)}: {message}"
    return message


def _class_line(name: str, layers: Sequence[Layer]) -> str | None:
    """The file and line that chose a class, and the key; None if no file did, or an option did later."""
    for layer in reversed(layers):
        for keys, value in _values(layer.content):
            if isinstance(value, str) and value.rpartition(".")[2] == name:
                place = _dotted(keys).removesuffix(".class_path")
                return f"{layer.where(keys)}: {place}" if layer.file is not None else None
    return None


def _values(content: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every single value of a config, and where it stands."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        if isinstance(value, dict | list):
            yield from _values(value, (*keys, key))
        else:
            yield (*keys, key), value


def _short(key: str) -> str:
    """A key as it may be written on the command line, where `init_args` may be left out."""
    return key.replace("init_args.", "")


def resolve_class(name: str, bases: tuple[type, ...], keys: Keys, *, trusted: bool = True) -> type:
    """The class that a config names at a place; as `load_class`."""
    return load_class(name, bases, "", kind_of(bases), trusted=trusted)


def kind_of(bases: tuple[type, ...]) -> str:
    """What a class at such a place is called: `data set`, `activation`, ..."""
    words = dict.fromkeys(_KINDS.get(base.__name__, base.__name__) for base in bases)
    return " or ".join(words)


def place(layers: Sequence[Layer], keys: Keys) -> str:
    """Where the user said something about a key the last time, followed by a colon; nothing if nowhere."""
    for layer in reversed(layers):
        if layer.names(keys):
            return f"{layer.where(keys)}: " if layer.file is not None else ""
    return ""


def _complaints(layer: Layer, table: Table, current: dict[Keys, type], parsed: bool = False) -> Iterator[str]:
    for found in walk(layer.content, table, resolve_class, current):
        if parsed and (found.type is not TABLE if isinstance(found, Leaf) else found.unknown is None):
            continue
        if isinstance(found, Leaf) and found.type is TABLE and isinstance(found.value, str):
            yield from _sub_config(found, table)
        elif isinstance(found, Leaf):
            wrong = misfit(found.value, found.type, written=layer.file is None)
            if wrong is not None:
                yield _message(layer, found.keys, wrong)
        elif found.unknown is not None:
            others = list(dict.fromkeys(places_of(found.unknown, table)))
            if others:
                what = found.message.partition(";")[0]
                yield f"{layer.where(found.keys)}: {what}; did you mean {' or '.join(others[:3])}?"
            else:
                yield f"{layer.where(found.keys)}: {found.message}"
        else:
            yield _message(layer, found.keys, found.message)


def _message(layer: Layer, keys: Keys, what: str) -> str:
    if layer.file is None:
        return f"{layer.option}: {what}"
    return f"{layer.where(keys)}: {_dotted(keys)}: {what}"


def _sub_config(found: Leaf, table: Table) -> Iterator[str]:
    """A file in the place of a table: `--model.backbone backbone.yaml`."""
    if not Path(found.value).suffix and not Path(found.value).exists():
        yield f"{_dotted(found.keys)}: expected a table of keys, or a file that holds one, got {found.value!r}"
        return
    file = read_config(found.value, f"{_dotted(found.keys)}:")
    below: Option | Table | None = table
    for key in found.keys:
        below = below.get(str(key)) if isinstance(below, dict) else None
    if isinstance(below, dict):
        yield from _complaints(Layer(file.content, file), below, {})


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)


def _shortened(error: str, layers: Sequence[Layer], command: str) -> str:
    """The parser's own words without its types and repetitions."""
    needed = re.search(r"arguments are required: ([\w., ]+)|Key \"([\w.]+)\" is required", error)
    key = re.search(r"[Pp]arser key \"([\w.]+)\"", error)
    named = key[1] if key else ""
    where = place(layers, tuple(named.split("."))) if named else ""
    if needed:
        names = needed[1] or needed[2]
        if names in ("data", f"{command}.data"):
            return "there are no data: give a --config that names some, or --data (such as --data CIFAR100)"
        cls = re.search(r"class_path '([\w.]+)'", error)
        return f"{where}{named + ': ' if named else ''}{cls[1].rpartition('.')[2] + ' ' if cls else ''}needs {names}"
    lines = [line.strip(" -") for line in error.splitlines()]
    dull = ("Subtypes:", "Given value", "Errors:", "Does not validate", "Parser key", "Expected a <class 'NoneType'>")
    telling = [line[:200] for line in lines if line and not line.startswith(dull)]
    said = "\n  ".join(telling[:4]) or error.splitlines()[0][:300]
    return f"{where}{named}: {said}" if named else said

"""What the `shard` command needs to know of a set, and how a sharder is found by name."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.data.sharding.writer import Item

NAME = "SHARDER"
"""What a module calls its sharder."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceSet:
    """A set that is ready to be written.

    Attributes:
        splits: the samples of each split (`train`, `val`, `test`), in the source's order.
        texts: small files of the public layout and their lines: `classnames.txt` and the like.
        settings: what else decides the bytes; plain values.
    """

    splits: Mapping[str, Sequence[Item]]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sharder:
    """Makes a set's tars out of its source. A module calls its own `SHARDER`.

    Attributes:
        name: of the set; part of what the tars' record says.
        source: what `--source` must be, for `--help` and errors, as `Flags: a folder with flags.csv and images/`.
        open: lists the samples of a source: its path and the command's options to a `SourceSet`.
        add_options: adds options of the set's own to the command's parser.
        reads_all: whether every file below the source may be read; then the tars must not lie there.
    """

    name: str
    source: str
    open: Callable[[Path, argparse.Namespace], SourceSet]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None
    reads_all: bool = False


def load_sharder(name: str) -> Sharder:
    """The sharder of a dotted name.

    Args:
        name: a module with a `SHARDER`; a package with a module `shard` that has one; a data module's class that lies
            in one of these; or the path of a `Sharder` itself.

    Raises:
        UserError: there is none; what was found is said.
    """
    found = _lookup(name)
    if isinstance(found, Sharder):
        return found
    module = sys.modules[found.__module__] if inspect.isclass(found) else found
    if not isinstance(module, ModuleType):
        raise UserError(f"shard {name}: this is neither a module nor a set, but {type(found).__name__}")
    places = [module.__name__, f"{module.__name__}.shard" if hasattr(module, "__path__") else ""]
    if inspect.isclass(found):
        places.append(f"{module.__name__.rpartition('.')[0]}.shard")
    for place in places:
        holder = _module(place, name) if place else None
        sharder = getattr(holder, NAME, None)
        if isinstance(sharder, Sharder):
            return sharder
        if sharder is not None:
            raise UserError(f"shard {name}: {place}.{NAME} must be a Sharder, but is {type(sharder).__name__}")
    raise UserError(
        f"shard {name}: {module.__name__} has no {NAME}: write {NAME} = Sharder(name=…, source=…, open=…) there, with "
        "clt_lightning.data.sharding.Sharder"
    )


def _lookup(name: str) -> Any:
    """The module or the object of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        holder = _module(".".join(parts[:end]), name)
        if holder is None:
            continue
        found: Any = holder
        for part in parts[end:]:
            if not hasattr(found, part):
                raise UserError(f"shard {name}: {'.'.join(parts[:end])} has no {part!r}")
            found = getattr(found, part)
        return found
    raise UserError(
        f"shard {name}: there is no module {parts[0]!r}: install it, or run `python -m clt_lightning` in the folder "
        "where it lies"
    )


def _module(name: str, asked: str) -> ModuleType | None:
    """The module, or None where there is none of this name."""
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            return None
        raise UserError(f"shard {asked}: {name} needs the package {missing}, which is not installed") from error
    except ImportError as error:
        raise UserError(f"shard {asked}: {name} cannot be imported: {error}") from error

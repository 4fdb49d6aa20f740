"""What keys a config may have, and what may stand there: read off the parser and the signatures of classes.

The names of jsonargparse that are not part of its public interface are used here and nowhere else.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint

from clt_lightning.core.classes import load_class, nearest
from clt_lightning.core.config_file import Keys
from clt_lightning.core.errors import UserError

_PLAIN = (str, int, float, bool, bytes, list, dict, tuple, set, frozenset, os.PathLike, enum.Enum, datetime.timedelta)
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


@dataclass(frozen=True)
class Option:
    """A key that holds a value: its type hint and default."""

    type: Any
    default: Any = None


#: Keys of a table, each an option or a table of its own
Table = dict[str, "Option | Table"]


@dataclass(frozen=True)
class Leaf:
    """A value in a config: where it stands, and of which type it should be (`TABLE`: of no value, but a table)."""

    keys: Keys
    value: Any
    type: Any


@dataclass(frozen=True)
class Problem:
    """Something that cannot stand where it stands.

    Attributes:
        keys: where.
        message: what is wrong with it.
        unknown: for a key that does not exist, its name.
    """

    keys: Keys
    message: str
    unknown: str | None = None


class TABLE:
    """The type of a key that holds further keys."""


#: Gives the class of a name, one of some bases, or raises UserError
Resolve = Callable[[str, tuple[type, ...], Keys], type]


@dataclass(frozen=True)
class Explained:
    """A key as `--help` knows it: its dotted name, what may stand there, and what it is for."""

    name: str
    option: Option
    help: str


def options_of(parser: ArgumentParser) -> Iterator[Explained]:
    """The keys that a parser takes, in its order."""
    for action in parser._actions:
        if isinstance(action, ActionTypeHint):
            yield Explained(action.dest, Option(action._typehint, action.default), action.help or "")


def table_of(parser: ArgumentParser) -> Table:
    """The keys that a parser takes."""
    table: Table = {}
    for explained in options_of(parser):
        *above, last = explained.name.split(".")
        place = table
        for part in above:
            place = place.setdefault(part, {})  # type: ignore[assignment]
        place[last] = explained.option
    return table


@functools.cache
def class_table(cls: type) -> Table:
    """The keys that a class takes as `init_args`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    return table_of(parser)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of which a value may be, with unions taken apart; `type(None)` for null."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(a for arg in typing.get_args(hint) for a in alternatives(arg))
    if typing.get_origin(hint) is typing.Annotated:
        return alternatives(typing.get_args(hint)[0])
    return (type(None),) if hint is None else (hint,)


def element(hint: Any) -> Any | None:
    """The type of a list's entries; None for types that are no lists."""
    if typing.get_origin(hint) in _LISTS:
        arguments = typing.get_args(hint)
        return arguments[0] if arguments else Any
    return Any if hint in (list, tuple) else None


def bases_of(hint: Any) -> tuple[type, ...]:
    """Classes of which a config may name a subclass at such a place, or a maker of which it may name."""
    found: list[type] = []
    for alternative in alternatives(hint):
        if is_callable(alternative):
            arguments = typing.get_args(alternative)
            found += bases_of(arguments[-1]) if arguments else ()
        elif inspect.isclass(alternative) and typing.get_origin(alternative) is None:
            plain = issubclass(alternative, _PLAIN) or alternative in (type(None), object, type, TABLE)
            if not plain and not dataclasses.is_dataclass(alternative) and alternative not in _LISTS:
                found.append(alternative)
    return tuple(dict.fromkeys(found))


def is_callable(hint: Any) -> bool:
    """Whether a function is expected."""
    return hint is Callable or typing.get_origin(hint) is collections.abc.Callable


def is_open(hint: Any) -> bool:
    """Whether anything at all may stand there, so that jsonargparse would make classes out of it."""
    return not any(
        alternative in (str, int, float, bool, type(None), TABLE)
        or typing.get_origin(alternative) in (Literal, *_LISTS)
        or (inspect.isclass(alternative) and alternative is not object)
        for alternative in alternatives(hint)
    )


def walk(content: Mapping[Any, Any], table: Table, resolve: Resolve, current: dict[Keys, type] | None = None) -> Walk:
    """Every value of a config, and every key that cannot stand where it stands.

    Args:
        content: the config, or a part of it that is laid over others.
        table: the keys that it may have.
        resolve: finds classes by name.
        current: the class at each place so far, for parts that give arguments alone; is kept up to date.
    """
    return _Walker(resolve, {} if current is None else current).table(content, table, ())


Walk = Iterator[Leaf | Problem]


class _Walker:
    def __init__(self, resolve: Resolve, current: dict[Keys, type]) -> None:
        self.resolve, self.current = resolve, current

    def table(self, content: Mapping[Any, Any], table: Table, keys: Keys, owner: str = "") -> Walk:
        for key, value in content.items():
            if isinstance(key, str) and "." in key and key not in table:  # a.b: 1 for a: {b: 1}
                first, _, rest = key.partition(".")
                yield from self.table({first: {rest: value}}, table, keys, owner)
            elif key not in table:
                yield Problem((*keys, key), _unknown(str(key), table, keys, owner), str(key))
            else:
                entry = table[key]
                if isinstance(entry, Option):
                    yield from self.value(value, entry, (*keys, key))
                elif isinstance(value, Mapping | Namespace):
                    yield from self.table(_mapping(value), entry, (*keys, key))
                else:
                    yield Leaf((*keys, key), value, TABLE)

    def value(self, value: Any, option: Option, keys: Keys) -> Walk:
        kinds = alternatives(option.type)
        bases = bases_of(option.type)
        listed = next((element(kind) for kind in kinds if bases_of(element(kind))), None)
        if isinstance(value, Mapping | Namespace):
            value = _mapping(value)
            tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
            if bases:
                yield from self.spec(value, bases, keys, option.default)
            elif tables:
                yield from self.table(value, class_table(tables[0]), keys)  # type: ignore[arg-type]
            elif listed is not None:  # --trainer.callbacks.monitor: of the last one
                yield from self.spec(value, bases_of(listed), keys, None)
            else:
                yield Leaf(keys, value, option.type)
        elif isinstance(value, list | tuple) and listed is not None:
            for index, entry in enumerate(value):
                yield from self.value(entry, Option(listed), (*keys, index))
            if (*keys, len(value) - 1) in self.current:  # what --trainer.callbacks.monitor goes to
                self.current[keys] = self.current[*keys, len(value) - 1]
        elif isinstance(value, str) and not bases and listed is not None:
            yield from self.value(value, Option(listed), keys)
        elif isinstance(value, str) and bases and (_dotted(value) or not {str, int, float} & set(kinds)):
            yield from self.named(value, bases, keys, keys)
        else:
            yield Leaf(keys, value, option.type)

    def named(self, name: Any, bases: tuple[type, ...], place: Keys, keys: Keys) -> Walk:
        """The class at a place is this one; nothing, or the problem with it."""
        if isinstance(name, str) and name.endswith((".yaml", ".yml", ".json")):
            yield Leaf(keys, name, TABLE)
            return
        try:
            self.current[place] = self.resolve(name, bases, keys)
        except UserError as error:
            self.current.pop(place, None)
            yield Problem(keys, str(error))

    def spec(self, value: Mapping[Any, Any], bases: tuple[type, ...], keys: Keys, default: Any) -> Walk:
        """`{class_path: ..., init_args: {...}}`, or arguments of the class that was there before."""
        if "class_path" in value:
            problems = list(self.named(value["class_path"], bases, keys, (*keys, "class_path")))
            if problems:
                yield from problems
                return
        elif keys not in self.current:
            name = default.get("class_path") if isinstance(default, Mapping | Namespace) else None
            if name is None:
                yield Problem(keys, "class_path is missing: it says which class this is")
                return
            yield from self.named(name, bases, keys, keys)
        if keys not in self.current:
            return
        cls = self.current[keys]
        table = class_table(cls)
        for key, given in value.items():
            here = (*keys, key)
            if key == "class_path":
                continue
            if key == "init_args" or (key == "dict_kwargs" and isinstance(given, Mapping | Namespace)):
                if given is None:
                    continue
                if not isinstance(given, Mapping | Namespace):
                    yield Leaf(here, given, TABLE)
                    continue
                known = {k: v for k, v in _mapping(given).items() if key == "init_args" or k in table}
                yield from self.table(known, table, here, cls.__name__)
                yield from (Leaf((*here, k), v, Any) for k, v in _mapping(given).items() if k not in known)
            elif "class_path" in value and key in table:
                yield Problem(here, f"belongs one level deeper: {'.'.join(map(str, (*keys, 'init_args', key)))}")
            elif isinstance(key, str) and key.startswith("init_args."):
                inner = {key.removeprefix("init_args."): given}
                yield from self.table(inner, table, (*keys, "init_args"), cls.__name__)
            else:
                yield from self.table({key: given}, table, keys, cls.__name__)


def _unknown(key: str, table: Table, keys: Keys, owner: str = "") -> str:
    close = nearest(key, table)
    place = owner or ".".join(map(str, keys))
    what = f"{owner} takes no {key}" if owner else f"{place} has no key {key}" if keys else f"there is no key {key}"
    if close:
        return f"{what}; did you mean {' or '.join(close)}?"
    return f"{what}; there are: {', '.join(sorted(table))}" if table else f"{what}: it takes no arguments"


def places_of(key: str, table: Table, keys: tuple[str, ...] = ()) -> Iterator[str]:
    """Where else in the tables a key of this name is."""
    for name, entry in table.items():
        if name == key:
            yield ".".join((*keys, name))
        if not isinstance(entry, Option):
            yield from places_of(key, entry, (*keys, name))
        elif isinstance(entry.default, Mapping | Namespace) and "class_path" in entry.default:
            for base in bases_of(entry.type):
                cls = load_class(entry.default["class_path"], base, name)
                yield from places_of(key, class_table(cls), (*keys, name, "init_args"))


def _mapping(value: Any) -> Mapping[Any, Any]:
    return vars(value) if isinstance(value, Namespace) else value


def _dotted(value: str) -> bool:
    parts = value.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)

"""Whether a value is of a type, and what to say if not."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import inspect
import os
import typing
from typing import Any, Literal

from clt_lightning.cli.schema import TABLE, alternatives, bases_of, element, is_callable, is_open
from clt_lightning.core.classes import nearest
from clt_lightning.core.config_file import parse_value

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    dict: "a table",
    datetime.timedelta: "a time",
    TABLE: "a table of keys",
}


def misfit(value: Any, hint: Any, *, written: bool) -> str | None:
    """What is wrong with a value; None if it is of the type.

    Args:
        value: from a config, or text from the command line.
        hint: the type that it should be of.
        written: whether it is text from the command line, which stands for what YAML reads in it.
    """
    if _fits(value, hint) or (written and isinstance(value, str) and _fits(parse_value(value), hint)):
        return None
    shown = value if written else _shown(value)
    said = f"expected {expected(hint)}, got {shown}"
    choices = [c for kind in alternatives(hint) if typing.get_origin(kind) is Literal for c in typing.get_args(kind)]
    if isinstance(value, str) and choices and (close := nearest(value, [str(c) for c in choices], n=1)):
        said += f"; did you mean {close[0]}?"
    if not written and _is_number(value) and str in alternatives(hint):
        said += f": in quotes, '{value}', it is text"
    return said


def expected(hint: Any) -> str:
    """A type in words: `a whole number, or null`."""
    kinds = alternatives(hint)
    choices = [str(c) for kind in kinds if typing.get_origin(kind) is Literal for c in typing.get_args(kind)]
    words = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    for kind in kinds:
        if typing.get_origin(kind) is Literal or (bases_of(kind) and {int, float} & set(kinds)):
            continue  # a tensor in the place of a number is for Python
        if (word := _word(kind)) not in words:
            words.append(word)
    if "null" in words and len(words) > 1:
        words = [*(w for w in words if w != "null"), "null"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _word(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if (inner := element(kind)) is not None:
        return "a list" if inner is Any else f"a list (of: {expected(inner)})"
    if typing.get_origin(kind) in (dict, collections.abc.Mapping):
        of_values = typing.get_args(kind)[1] if typing.get_args(kind) else Any
        return "a table" if of_values is Any else f"a table (of: {expected(of_values)})"
    if bases_of(kind):
        return f"a class ({', '.join(base.__name__ for base in bases_of(kind))})"
    if inspect.isclass(kind) and issubclass(kind, os.PathLike):
        return "a path"
    return getattr(kind, "__name__", str(kind))


def _fits(value: Any, hint: Any) -> bool:
    return is_open(hint) or any(_fits_one(value, kind) for kind in alternatives(hint))


def _fits_one(value: Any, kind: Any) -> bool:
    if kind is Any or kind is object:
        return True
    if kind is type(None):
        return value is None
    if kind is TABLE:
        return isinstance(value, dict)
    if typing.get_origin(kind) is Literal:
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in _choices(kind))
    if kind in (int, float):
        return _is_number(value) and (kind is float or isinstance(value, int))
    if kind in (str, bool):
        return isinstance(value, kind)
    if (inner := element(kind)) is not None:
        return isinstance(value, list | tuple | set) and all(_fits(entry, inner) for entry in value)
    if kind is dict or typing.get_origin(kind) in (dict, collections.abc.Mapping):
        of_values = typing.get_args(kind)[1] if typing.get_args(kind) else Any
        return isinstance(value, dict) and all(_fits(entry, of_values) for entry in value.values())
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if inspect.isclass(kind) and issubclass(kind, os.PathLike | datetime.timedelta):
        return isinstance(value, str | kind)
    if bases_of(kind) or is_callable(kind):
        return value is not None and not isinstance(value, int | float | list | str)  # classes were looked at before
    return True  # a type that is not judged here


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

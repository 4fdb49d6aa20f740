"""Arguments and settings of the wrong type, named before they are rounded or stored."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from numbers import Real
from typing import Any, Literal

from clt_lightning.core.errors import UserError


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as an int; 1.5 is not rounded, and neither are 2.0 and true taken for one.

    Args:
        name: of the argument, for the message.
        value: what was given.
        least: the smallest that it may be.

    Raises:
        UserError: it is no whole number, or too small.
    """
    if isinstance(value, bool):
        raise UserError(f"{name} must be a whole number, got {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, got {value!r}") from None
    if least is not None and number < least:
        raise UserError(f"{name} must be at least {least}, got {number}")
    return number


def number(name: str, value: Any) -> float:
    """A finite number as a float.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name} must be a number, got {value!r}")
    return float(value)


def check_fields(settings: Any, name: str) -> None:
    """Whether every field of a dataclass holds what its type says; to be called in `__post_init__`.

    Looks at whole numbers, numbers, truth values, texts, choices, lists of them, and null.

    Args:
        settings: the dataclass.
        name: its key in a config, such as `schedule`.

    Raises:
        UserError: a field does not; the message begins with its key.
    """
    for field, hint in _hints(settings.__class__).items():
        _check(f"{name}.{field}", getattr(settings, field), hint)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check(name: str, value: Any, hint: Any) -> None:
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) != 1:
        return
    kind, or_null = kinds[0], " or null" if kinds != (hint,) else ""
    if kind is int:
        _or_null(whole, name, value, or_null)
    elif kind is float:
        _or_null(number, name, value, or_null)
    elif kind is bool and not isinstance(value, bool):
        raise UserError(f"{name} must be true or false{or_null}, got {value!r}")
    elif kind is str and not isinstance(value, str):
        raise UserError(f"{name} must be a text{or_null}, got {value!r}")
    elif typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
        raise UserError(f"{name} must be one of {', '.join(map(str, typing.get_args(kind)))}{or_null}, got {value!r}")
    elif typing.get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} must be a list{or_null}, got {value!r}")
        for index, entry in enumerate(value):
            _check(f"{name}[{index}]", entry, typing.get_args(kind)[0])


def _or_null(check: Any, name: str, value: Any, or_null: str) -> None:
    try:
        check(name, value)
    except UserError as error:
        raise UserError(str(error).replace(", got", f"{or_null}, got", 1)) from None

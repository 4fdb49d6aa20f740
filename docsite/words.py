"""Types, defaults and help texts as a reader writes them."""

from __future__ import annotations

import collections.abc
import datetime
import html
import inspect
import json
import os
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from clt_lightning.cli.schema import alternatives

_NAMES = {
    type(None): "null",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    os.PathLike: "path",
    datetime.timedelta: "time span",
    dict: "table",
    list: "list",
    Any: "anything",
}
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)


def beginning(page: str) -> str:
    """How a page begins that is made from code: what a person wrote."""
    return (Path(__file__).parent / "beginnings" / f"{page}.md").read_text(encoding="utf-8")


def type_words(hint: Any) -> str:
    """A type as words: `whole number or null`, `one of a | b`, `list of text`."""
    kinds = list(dict.fromkeys(_one(kind) for kind in alternatives(hint)))
    if "path" in kinds and "text" in kinds:
        kinds.remove("text")
    if "null" in kinds:  # last, as the exception that it is
        kinds = [kind for kind in kinds if kind != "null"] + ["null"]
    return ", ".join(kinds[:-1]) + " or " + kinds[-1] if len(kinds) > 1 else kinds[0]


def _one(kind: Any) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in _LISTS:
        inner = [a for a in arguments if a is not Ellipsis]
        return f"list of {_several(type_words(inner[0]))}" if inner else "list"
    if origin in (dict, collections.abc.Mapping):
        return "table"
    if origin is collections.abc.Callable:
        returned = arguments[-1] if arguments else None
        return f"class of {returned.__name__}" if inspect.isclass(returned) else "function"
    if isinstance(origin, type) or isinstance(kind, types.GenericAlias):
        return str(getattr(origin, "__name__", kind))
    return f"class of {kind.__name__}" if inspect.isclass(kind) else str(kind).replace("typing.", "")


def _several(words: str) -> str:
    return f"{words}s" if words in ("whole number", "number", "text", "path") else words


def default_words(value: Any) -> str:
    """A default as YAML has it, on one line."""
    if inspect.isclass(value) or callable(value):
        return str(getattr(value, "__name__", value))
    plain = _plain(value)
    if isinstance(plain, dict) and "class_path" in plain:
        return spec_words(plain)
    return flow(plain)


def spec_words(spec: dict[str, Any]) -> str:
    """A class with its arguments: `{class_path: TopK, init_args: {k: 64}}`."""
    return flow({**spec, "class_path": str(spec["class_path"]).rsplit(".", 1)[-1]})


def flow(value: Any) -> str:
    """A value in YAML's flow style, without quotes where none are needed."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(entry) for entry in value) + "]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./:+-]+", value) else json.dumps(value)
    return json.dumps(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace | dict):
        content = value.as_dict() if isinstance(value, Namespace) else value
        return {key: _plain(entry) for key, entry in content.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, bool | int | float | str | type(None)) else str(value)


def text_html(text: str) -> str:
    """A help text as HTML: `code` in either of the two conventions, Sphinx's roles, and paragraphs joined."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = text.replace("``", "`")
    text = re.sub(r"\n\s*\n", "\n", text.strip())
    text = html.escape(re.sub(r"\s+", " ", text), quote=False)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)

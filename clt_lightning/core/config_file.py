"""YAML files that users wrote, with the line of every key."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import Place, decode_text

#: Names of mappings and positions in lists, from the top down
Keys = tuple[Hashable, ...]
#: Aliases that name each other make a file of one line as large as a disk
_MOST_NODES = 100_000


@dataclass(frozen=True)
class ConfigFile:
    """A config as it was written.

    Attributes:
        name: the file, as the user named it.
        content: plain tables, lists and values.
        lines: line of every key and list entry, counted from 1.
    """

    name: str
    content: dict[Any, Any]
    lines: dict[Keys, int]

    def where(self, keys: Keys) -> str:
        """`configs/vitb32.yaml, line 12`: of the key, or of what is nearest above it."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return f"{self.name}, line {self.lines[keys[:end]]}"
        return self.name


def read_config(path: Place, option: str = "") -> ConfigFile:
    """Reads a YAML (or JSON) file that holds a table.

    Args:
        path: the file.
        option: what named it, for the message where it is not there.

    Raises:
        UserError: it is not there, cannot be read, is no YAML, names a key twice, or holds no table; the message has
            the line.
    """
    name, named = os.fspath(path), f"{option} " if option else ""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{named}{name}: no such file{_nearest(Path(path))}") from None
    except OSError as error:
        raise UserError(f"{named}{name} cannot be read: {error.strerror or error}") from error
    return parse_config(decode_text(data, name), name)


def parse_config(text: str, name: str) -> ConfigFile:
    """As `read_config`, of a text that was read already; `name` stands in the messages."""
    try:
        loader = _loader_class()(text)
        try:
            node = loader.get_single_node()
            lines = {} if node is None else _lines(node, name)
            content = {} if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise UserError(_not_yaml(error, text, name)) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is not YAML: {str(error).splitlines()[0][:120]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} holds no table of keys and values, but {_kind(content)}")
    return ConfigFile(name, content, lines)


def parse_value(text: str) -> Any:
    """A value as it is understood on the command line and in a config; text that is no YAML stays text."""
    try:
        return yaml.load(text, _loader_class())
    except (yaml.YAMLError, RecursionError, ValueError):
        return text


@functools.cache
def _loader_class() -> type[yaml.SafeLoader]:
    """PyYAML's safe loader, where 1e-3 is a number and a date is text, as jsonargparse reads configs."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in entries if not tag.endswith((":timestamp", ":float"))]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = (
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    )
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{number})$"), list("-+0123456789."))
    return Loader


def _lines(root: yaml.Node, name: str) -> dict[Keys, int]:
    """Line of every key; refuses keys that stand twice in a table, and files that never end."""
    lines: dict[Keys, int] = {}
    waiting: list[tuple[yaml.Node, Keys]] = [(root, ())]
    while waiting:
        node, keys = waiting.pop()
        if len(lines) > _MOST_NODES or len(keys) > 100:
            raise UserError(f"{name} is no config: its aliases (&name, *name) repeat without end")
        if isinstance(node, yaml.SequenceNode):
            for index, entry in enumerate(node.value):
                lines[*keys, index] = entry.start_mark.line + 1
                waiting.append((entry, (*keys, index)))
        elif isinstance(node, yaml.MappingNode):
            seen: dict[Any, int] = {}
            for key_node, value in node.value:
                line = key_node.start_mark.line + 1
                key = parse_value(key_node.value) if isinstance(key_node, yaml.ScalarNode) else str(key_node.value)
                if isinstance(key_node, yaml.ScalarNode) and key_node.style:
                    key = key_node.value  # in quotes: text
                if key in seen and key != "<<":
                    raise UserError(
                        f"{name}, line {line}: the key {'.'.join(map(str, (*keys, key)))} stands twice (first in line "
                        f"{seen[key]}): leave one"
                    )
                seen[key] = line
                lines[*keys, key] = line
                waiting.append((value, (*keys, key)))
    return lines


def _not_yaml(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = str(error.problem or "it cannot be read").removesuffix(" here")
    if mark is None:
        return f"{name} is not YAML: {problem}"
    if "'\\t'" in problem:
        problem = "a tab stands where spaces belong"
    elif problem.startswith("mapping values"):
        problem = "a colon too many: is one missing in the line above, or does a text need quotes?"
    elif "end of stream" in problem or "stream end" in problem:
        problem = "the file ends too early: is a quote or bracket not closed?"
    shown = text.splitlines()[mark.line].strip() if mark.line < len(text.splitlines()) else "the end of the file"
    begun = ""
    if error.context_mark is not None and error.context_mark.line < mark.line:
        begun = f" ({error.context}, begun in line {error.context_mark.line + 1})"
    return f"{name}, line {mark.line + 1}: not YAML: {problem}{begun}\n  {shown[:100]}"


def _kind(content: Any) -> str:
    return {list: "a list", str: "plain text", int: "a number", float: "a number"}.get(type(content), repr(content))


def _nearest(path: Path) -> str:
    """Files of nearly that name in the folder, for the message."""
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder})"
    names = [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml", ".json")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or sorted(names)[:5]
    return f"; there {'is' if len(near) == 1 else 'are'} {', '.join(str(folder / n) for n in near)}" if near else ""

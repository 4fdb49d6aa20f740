"""Makes `help.json`, from which `ready_help` prints: `python -m clt_lightning.cli.help_source`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clt_lightning.cli.config_cli import config_keys
from clt_lightning.cli.main import TRAINER_COMMANDS
from clt_lightning.cli.ready_help import FILE, PACKAGE, outlines, versions
from clt_lightning.cli.schema import Option, Table, alternatives
from clt_lightning.cli.trainer import CLTCLI
from clt_lightning.core.classes import subclasses


class _Made(Exception):  # noqa: N818
    """Ends the command line once its parser is there."""


class _ParserOnly(CLTCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Made(self.parser_of(self.command))


def parser_of(command: str) -> argparse.ArgumentParser:
    """The whole parser of a trainer command."""
    try:
        _ParserOnly([command])
    except _Made as made:
        parser: argparse.ArgumentParser = made.args[0]
        return parser
    raise AssertionError("a command line that parses nothing")


def recorded(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """What a parser gives to its formatter: usage and sections, the first of which has no heading."""
    found: list[dict[str, Any]] = []
    plain: Any = parser.formatter_class

    class Recorder(plain):  # type: ignore[misc]
        def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
            found.append({"usage": usage})
            found.append({"heading": None, "texts": [], "options": []})

        def start_section(self, heading: str | None) -> None:
            found.append({"heading": heading, "texts": [], "options": []})
            super().start_section(heading)

        def add_text(self, text: str | None) -> None:
            if text:
                found[-1]["texts"].append(text)

        def add_argument(self, action: argparse.Action) -> None:
            if action.help != argparse.SUPPRESS:
                found[-1]["options"].append([self._format_action_invocation(action), self._expand_help(action)])

    parser.formatter_class = Recorder
    try:
        parser.format_help()
    finally:
        parser.formatter_class = plain
    return found


def shown(keys: Table) -> dict[str, list[str]]:
    """The definitions of this package whose names, texts and defaults a help shows: file -> names."""
    found: dict[str, set[str]] = {"cli/config_cli.py": set(), "cli/help.py": set(), "cli/parser.py": set()}
    seen: set[Any] = set()

    def look(thing: Any) -> None:
        for one in alternatives(thing):
            for part in (one, *typing.get_args(one)):
                if not inspect.isclass(part) or part in seen:
                    continue
                seen.add(part)
                for base in inspect.getmro(part):
                    if base.__module__.startswith("clt_lightning."):
                        file = Path(inspect.getfile(base)).resolve().relative_to(PACKAGE).as_posix()
                        found.setdefault(file, set()).add(base.__name__)
                if part.__module__.startswith("clt_lightning."):
                    fields = part if dataclasses.is_dataclass(part) else part.__init__
                    for hint in typing.get_type_hints(fields).values():
                        look(hint)

    for option in _options(keys):
        look(option.type)
        for hint in alternatives(option.type):
            if inspect.isclass(hint) and not dataclasses.is_dataclass(hint):
                for classes in subclasses(hint).values():
                    for cls in classes:
                        look(cls)
    return {file: sorted(names) for file, names in sorted(found.items())}


def _options(table: Table) -> Iterator[Option]:
    for value in table.values():
        if isinstance(value, Option):
            yield value
        else:
            yield from _options(value)


def contents() -> dict[str, Any]:
    """What the file should hold."""
    sections: list[dict[str, Any]] = []
    commands: dict[str, Any] = {}
    for command in TRAINER_COMMANDS:
        numbers = commands[command] = []
        for section in recorded(parser_of(command)):
            if section not in sections:
                sections.append(section)
            numbers.append(sections.index(section))
    files = shown(config_keys())
    return {
        "versions": versions(),
        "shown": files,
        "sources": outlines(files),
        "commands": commands,
        "sections": sections,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(contents(), indent=1, ensure_ascii=False) + "\n", "utf-8")

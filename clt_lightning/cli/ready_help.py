"""What `fit --help` and its like print, made beforehand: without torch and Lightning, which take seconds to load.

`help.json` beside this file holds what the parsers gave to their formatter. It serves where the libraries and the
classes that it was made from are the ones installed; elsewhere the parsers themselves answer.
`python -m clt_lightning.cli.help_source` makes the file (a test says when that is needed).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_name("help.json")
#: What types, defaults and texts of options depend on, beside this package's classes
_LIBRARIES = ("jsonargparse", "lightning", "torch")


def ready_help(command: str) -> str | None:
    """The help of a trainer command, as wide as the terminal; None where the file is of other versions."""
    try:
        saved = json.loads(FILE.read_text("utf-8"))
        if saved["versions"] != versions() or saved["sources"] != outlines(saved["shown"]):
            return None
        return _replayed(saved["sections"][number] for number in saved["commands"][command])
    except (OSError, ValueError, LookupError, SyntaxError, metadata.PackageNotFoundError):
        return None


def versions() -> dict[str, str]:
    """The versions that a help text was made with."""
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", **{n: metadata.version(n) for n in _LIBRARIES}}


def outlines(shown: dict[str, list[str]]) -> str:
    """A digest of what the help shows of some definitions: names, bases, documentation, arguments, fields.

    Args:
        shown: file of the package -> names of classes and functions in it; of `cli/` all count whole.
    """
    digest = hashlib.sha256()
    for file, names in sorted(shown.items()):
        for node in ast.parse((PACKAGE / file).read_text("utf-8")).body:
            name = getattr(node, "name", "")
            if file.startswith("cli/") and not isinstance(node, ast.Import | ast.ImportFrom):
                digest.update(ast.unparse(node).encode())
            elif isinstance(node, ast.ClassDef | ast.FunctionDef) and name in names:
                digest.update("\n".join(_outline(node)).encode())
    return digest.hexdigest()


def _outline(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    found = [node.name, ast.get_docstring(node) or "", *map(ast.unparse, node.decorator_list)]
    if isinstance(node, ast.FunctionDef):
        return [*found, ast.unparse(node.args)]
    found += map(ast.unparse, node.bases)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            found += _outline(part)
        elif isinstance(part, ast.AnnAssign | ast.Assign):
            found.append(ast.unparse(part))
    return found


class _Ready(argparse.HelpFormatter):
    """Writes options whose names and texts are as they shall be."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return action.dest

    def _expand_help(self, action: argparse.Action) -> str:
        return action.help or ""


def _replayed(sections: Any) -> str:
    formatter = _Ready(prog="")
    for section in sections:
        if "usage" in section:
            formatter.add_usage(section["usage"], [], [])
            continue
        if section["heading"] is not None:
            formatter.start_section(section["heading"])
        for text in section["texts"]:
            formatter.add_text(text)
        for names, text in section["options"]:
            formatter.add_argument(argparse.Action([], names, help=text))
        if section["heading"] is not None:
            formatter.end_section()
    return formatter.format_help()

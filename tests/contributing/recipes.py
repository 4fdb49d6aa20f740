"""The code blocks of CONTRIBUTING.md as a package of somebody else's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def write(title: str, folder: Path) -> list[Path]:
    """Writes a recipe's files, each under the path in its first line, into a folder."""
    written = []
    for block in re.findall(r"^```python\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL):
        first, _, code = block.partition("\n")
        path = folder / first.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
        written.append(path)
    return written


def settings(title: str) -> dict[str, Any]:
    """A recipe's YAML."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def lines(path: Path) -> int:
    """Lines of code and words, blank ones left out."""
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())

"""Options that several commands share: what is refused of them is refused before anything is measured."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.cli.arguments import ArgumentParser
from clt_lightning.core.errors import UserError

#: Commands that write one file of numbers, and what else they need
COMMANDS = {
    "attention": ["--run", "none", "--units", "none/units"],
    "bench": ["--run", "none"],
    "compare": ["none", "none2"],
    "debias": ["--run", "none"],
    "graph": ["--run", "none", "--image", "0"],
    "paper_table": ["none"],
    "steer": ["--run", "none", "--set", "0/0=1"],
    "studies": ["--run", "none"],
}


def run(command: str, *words: str) -> None:
    module: Any = importlib.import_module(f"clt_lightning.cli.{command}")
    parser = ArgumentParser(prog=command)
    module.add_arguments(parser)
    module.run(parser.parse_args([*COMMANDS[command], *words]))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_as_output_is_refused_at_once(command: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--output .* is a folder: name a file"):
        run(command, "--output", str(tmp_path))
    with pytest.raises(UserError, match=r"--output.*NOT_SET_HERE"):
        run(command, "--output", "$NOT_SET_HERE/file.json")


@pytest.mark.parametrize(
    ("command", "option", "least"),
    [("bench", "--top", 2), ("debias", "--group-images", 1), ("graph", "--validate", 2), ("studies", "--images", 1)],
)
def test_numbers_that_are_too_small(command: str, option: str, least: int) -> None:
    with pytest.raises(UserError, match=f"{option} must be at least {least}, got {least - 1}"):
        run(command, option, str(least - 1))

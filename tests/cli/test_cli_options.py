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
    "probe": ["--run", "none"],
    "steer": ["--run", "none", "--set", "0/0=1"],
    "studies": ["--run", "none"],
}


def run(command: str, *words: str) -> None:
    module: Any = importlib.import_module(f"clt_lightning.cli.{command}")
    parser = ArgumentParser(prog=command)
    module.add_arguments(parser)
    module.run(parser.parse_args([*COMMANDS[command], *words]))


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"probe"}))
def test_a_folder_as_output_is_refused_at_once(command: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--output .* is a folder: name a file"):
        run(command, "--output", str(tmp_path))
    with pytest.raises(UserError, match=r"--output.*NOT_SET_HERE"):
        run(command, "--output", "$NOT_SET_HERE/file.json")


@pytest.mark.parametrize(
    ("command", "option", "least"),
    [
        ("bench", "--top", 2),
        ("debias", "--group-images", 1),
        ("graph", "--validate", 2),
        ("steer", "--classes", 1),
        ("studies", "--images", 1),
    ],
)
def test_numbers_that_are_too_small(command: str, option: str, least: int) -> None:
    with pytest.raises(UserError, match=f"{option} must be at least {least}, got {least - 1}"):
        run(command, option, str(least - 1))


@pytest.mark.parametrize(
    "words", [["--way", "codes"], ["--sizes", "1,2"], ["--head", "zero_shot"], ["--collateral", "x.yaml"]]
)
def test_what_erasing_does_not_read_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"{words[0]} is of no use with --erase"):
        run("debias", "--erase", "dog", *words)
    with pytest.raises(UserError, match="--erase is of one run, and --run names 2"):
        run("debias", "--erase", "dog", "--run", "other")


def test_a_folder_as_picture_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "all.png"
    folder.mkdir()
    with pytest.raises(UserError, match=r"--picture .* is a folder: name a file"):
        run("steer", "--picture", str(folder))


@pytest.mark.parametrize("command", ["attention", "bench", "compare", "debias", "graph", "steer"])
@pytest.mark.parametrize("seed", ["-1", "4294967296", "x"])
def test_a_seed_that_no_generator_takes_is_refused(command: str, seed: str) -> None:
    with pytest.raises(UserError, match=f"--seed: expected a whole number from 0 to 4294967295, got '{seed}'"):
        run(command, "--seed", seed)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("attention", ["--k", "8"], "--k makes new units: give --train STEPS too"),
        ("attention", ["--d_qk", "8"], "--d_qk makes new units"),
        ("probe", ["--dense", "depth", "--pool", "max"], "--pool is of the probe of classes"),
        ("steer", ["--train-images", "8"], "--train-images is an option of --amplify"),
    ],
)
def test_what_would_do_nothing_is_refused(command: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(command, *words)

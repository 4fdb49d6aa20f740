"""A set that is no part of the package: CONTRIBUTING's own recipe, and what is said of one that is written wrongly."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clt_lightning.cli.arguments import ArgumentParser
from clt_lightning.core.errors import UserError
from clt_lightning.data.shard import add_arguments, run

ROOT = Path(__file__).parents[3]
KINDS = ("bars", "cross", "plain")


def recipe() -> tuple[dict[str, str], list[str]]:
    """The files and the commands of CONTRIBUTING's section."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^#{2,3} ", text, flags=re.MULTILINE)
    (section_text,) = [part for part in section if part.startswith("A data set\n")]
    files = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```", section_text, re.MULTILINE | re.DOTALL))
    (commands,) = re.findall(r"^```sh\n(.*?)^```", section_text, re.MULTILINE | re.DOTALL)
    return files, commands.splitlines()


def flags(folder: Path, count: int = 60) -> Path:
    """Pictures of 24 x 24 pixels in their kinds, and the table that lists them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = ["file,kind,split"]
    for i in range(count):
        kind = KINDS[i % 3]
        pixels = np.full((24, 24, 3), rng.integers(0, 255, 3), np.uint8)
        if kind != "plain":
            pixels[8:16] = rng.integers(0, 255, 3)
        if kind == "cross":
            pixels[:, 8:16] = pixels[8, 0]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{kind},{'test' if i % 4 == 3 else 'train'}")
    (folder / "flags.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_contributing_s_recipe_makes_a_set_and_trains_on_it(tmp_path: Path) -> None:
    files, commands = recipe()
    assert len(files) == 2
    assert sum(len([line for line in source.splitlines() if line.strip()]) for source in files.values()) <= 80
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    flags(tmp_path / "raw")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "clt_lightning"]
        # the curves are drawn from more images than there are here, and the evaluation is another test's
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (config,) = tmp_path.glob("runs/quickstart/version_0/config.yaml")
    assert "flags.module.Flags" in config.read_text()
    assert (tmp_path / "data/flags/classnames.txt").read_text().split() == list(KINDS)
    assert (tmp_path / "data/flags/val/nshards.txt").is_file()
    assert list(tmp_path.glob("runs/quickstart/version_0/checkpoints/*.ckpt"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.split(".")[0].startswith("outside"):
            del sys.modules[name]


def shard(*words: str) -> int:
    parser = ArgumentParser(prog="shard")
    add_arguments(parser, words)
    return run(parser.parse_args(words))


SOUND = """
import argparse
from clt_lightning.data.sharding import Item, Sharder, SourceSet
def open_it(source, options):
    parts = lambda: {"png": b"" if options.empty else b"1234"}
    return SourceSet({"train": [Item(f"{i}", parts) for i in range(4)]})
def add(parser):
    parser.add_argument("--empty", action="store_true", help="no bytes")
SHARDER = Sharder("mine", "Mine: a folder", open_it, add)
class Mine: ...
other = SHARDER
"""


@pytest.mark.parametrize(
    "name", ["outside1", "outside1.own.shard", "outside1.own.shard.other", "outside1.own.shard.Mine", "outside1.own"]
)
def test_a_sharder_is_found_by_module_package_class_or_itself(package: Path, name: str) -> None:
    (package / "outside1" / "own").mkdir(parents=True)
    (package / "outside1" / "own" / "shard.py").write_text(SOUND)
    (package / "outside1" / "own" / "__init__.py").touch()
    (package / "outside1" / "__init__.py").write_text("from outside1.own.shard import SHARDER\n")
    (package / "source").mkdir()
    name = name if "." in name else f"{name}.SHARDER"
    for output, more in (("a", ()), ("b", ("--empty",))):
        assert shard(name, "--source", str(package / "source"), "--output", str(package / output), *more) == 0
    a, b = ((package / output / "train" / "shards.json").read_text() for output in "ab")
    assert a != b
    assert '"dataset": "mine"' in a


@pytest.mark.parametrize(
    ("source", "name", "told"),
    [
        ("", "outside2.mod", "outside2.mod has no SHARDER"),
        ("SHARDER = 3", "outside2.mod", r"outside2.mod.SHARDER must be a Sharder, but is int"),
        ("import nowhere_at_all", "outside2.mod", "needs the package nowhere_at_all, which is not installed"),
        ("from json import nothing_there", "outside2.mod", "outside2.mod cannot be imported"),
        ("", "outside2.mod.Set", "outside2.mod has no 'Set'"),
        ("Set = 5", "outside2.mod.Set", "neither a module nor a set, but int"),
        ("", "outside2.nowhere", "outside2 has no 'nowhere'"),
        ("", "nowhere_outside.mod", "there is no module 'nowhere_outside'"),
        ("", "cifar100.tar.gz", "there is no module 'cifar100'"),
        ("", "../mod.py", "no module"),
    ],
)
def test_what_is_no_sharder_is_said(package: Path, source: str, name: str, told: str) -> None:
    (package / "outside2").mkdir()
    (package / "outside2" / "mod.py").write_text(source)
    (package / "outside2" / "__init__.py").touch()
    with pytest.raises(UserError, match=told):
        shard(name, "--source", str(package), "--output", str(package / "out"))


@pytest.mark.parametrize(
    ("splits", "told"),
    [
        ("{'training': []}", "its splits are training: use train, val, test"),
        ("{}", "its splits are none"),
        ("{'train': [Item('a', lambda: {'cls': b'0'})]}", "a has cls, but no image"),
        ("{'train': [Item('a', lambda: {'png': b'0', '_meta': b'1'})]}", "a: '_meta' is no suffix of a member"),
        ("{'train': [Item('a', lambda: {'png': b'0', 'cls': 1})]}", "a: its 'cls' must be bytes, but is int"),
        ("{'train': [Item('a', lambda: {'PNG': b'0'})]}", "'PNG' is no suffix"),
    ],
)
def test_a_sharder_that_lists_what_cannot_be_read_again_is_refused(package: Path, splits: str, told: str) -> None:
    (package / "outside3.py").write_text(
        "from clt_lightning.data.sharding import Item, Sharder, SourceSet\n"
        f"SHARDER = Sharder('mine', 'Mine: a folder', lambda source, options: SourceSet({splits}))\n"
    )
    with pytest.raises(UserError, match=told):
        shard("outside3.SHARDER", "--source", str(package), "--output", str(package / "out"))
    assert not list((package / "out").rglob("*.tar"))


def test_an_option_that_the_command_has_itself_is_refused(package: Path) -> None:
    (package / "outside4.py").write_text(
        "from clt_lightning.data.sharding import Sharder\n"
        "SHARDER = Sharder('mine', 'Mine', print, lambda parser: parser.add_argument('--limit'))\n"
    )
    with pytest.raises(UserError, match=r"outside4\.SHARDER.*--limit"):
        shard("outside4.SHARDER", "--source", str(package), "--output", str(package / "out"))


def test_every_sharder_of_the_package_is_named_like_its_folder() -> None:
    from clt_lightning.data.sets import having, sharders

    assert list(sharders()) == having("shard")
    assert all(sharder.name == name for name, sharder in sharders().items())
    parser = ArgumentParser(prog="shard")
    add_arguments(parser)
    for name in sharders():
        words = (name, "--source", "x", "--output", "y")
        assert parser.parse_args(words).sharder is sharders()[name]

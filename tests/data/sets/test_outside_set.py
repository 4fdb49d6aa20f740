"""A set that is no part of the package: how its sharder is found, and what is said of one that is written wrongly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clt_lightning.cli.arguments import ArgumentParser
from clt_lightning.core.errors import UserError
from clt_lightning.data.shard import add_arguments, run


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

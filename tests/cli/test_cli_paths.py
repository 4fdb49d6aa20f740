"""Paths in a config: variables and `~` put in where it is read, and absolute in what a run keeps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from clt_lightning.analysis import open_run
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.cli.config_cli import config_keys
from clt_lightning.cli.config_paths import absolute, is_path, settle_paths
from clt_lightning.cli.main import main
from clt_lightning.cli.parser import Parser, int_before_float
from clt_lightning.cli.schema import Option, Table, class_table
from clt_lightning.core.errors import UserError
from clt_lightning.data.sets import modules
from tests.cli.small import CONFIG, write


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning's log handler keeps the standard error of the test that imported it first
    monkeypatch.setattr(logging, "raiseExceptions", False)


def test_a_run_under_a_variable_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH_OF_MINE", str(tmp_path / "scratch"))
    data = {"class_path": "Demo", "init_args": CONFIG["data"]["init_args"] | {"root": "${SCRATCH_OF_MINE}/data"}}
    config = write(tmp_path, runs_dir="$SCRATCH_OF_MINE/runs", data=data)
    main(["fit", "--config", str(config)])
    main(["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps=3"])
    runs = tmp_path / "scratch" / "runs" / "small"
    assert [p.name for p in runs.iterdir()] == ["version_0"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "scratch"]
    saved = yaml.safe_load((runs / "version_0" / "config.yaml").read_text())
    assert saved["runs_dir"] == str(tmp_path / "scratch" / "runs")
    assert saved["data"]["init_args"]["root"] == str(tmp_path / "scratch" / "data")


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    main(["fit", "--config", str(write(tmp_path)), "--runs_dir", "~/runs", "--data.init_args.root=~/data"])
    assert (tmp_path / "home" / "runs" / "small" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "home" / "data" / "train").is_dir()
    assert not (tmp_path / "~").exists()


def test_a_run_is_evaluated_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(write(tmp_path / "home").parent)
    main(["fit", "--config", "config.yaml", "--runs_dir", "runs"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = tmp_path / "home" / "runs" / "small" / "version_0"
    main(["validate", "--run", str(run)])
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert open_run(run).datamodule.root == str(tmp_path / "home" / "data")

    # the run's tree and the data were moved
    (tmp_path / "home" / "runs").rename(tmp_path / "kept")
    (tmp_path / "home" / "data").rename(tmp_path / "images")
    run = tmp_path / "kept" / "small" / "version_0"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "--run", str(run)])
    assert stopped.value.code == 2
    assert "say where they are with --data.init_args.root=" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"say where they are with --data\.init_args\.root="):
        open_run(run)
    assert not (tmp_path / "home" / "data").exists()  # nothing was rendered again
    main(["validate", "--run", str(run), f"--data.init_args.root={tmp_path / 'images'}"])
    opened = open_run(run, data_root=tmp_path / "images")
    assert len(list(opened.batches("test"))) == 1
    assert not (tmp_path / "home" / "data").exists()


def options(table: Table, above: tuple[str, ...] = ()) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for key, entry in table.items():
        if isinstance(entry, Option):
            found[".".join((*above, key))] = entry
        else:
            found |= options(entry, (*above, key))
    return found


def test_every_option_for_a_place_is_known_as_one() -> None:
    """By its type; a new one whose name says that it is a place must say so, too."""
    telling = ("root", "dir", "dirpath", "path", "folder", "file", "pretrained", "words", "class_list")
    tables = {"": config_keys()} | {name: class_table(cls) for name, cls in modules.CLASSES.items()}
    tables |= {cls.__name__: class_table(cls) for cls in (FrozenCLIP, FrozenViT)}
    places = {
        f"{name}.{key}".strip(".")
        for name, table in tables.items()
        for key, option in options(table).items()
        if key.rpartition(".")[2].rpartition("_")[2] in telling or key.rpartition(".")[2] in telling
    }
    assert {
        "runs_dir",
        "FrozenCLIP.pretrained",
        "FrozenViT.pretrained",
        "checkpoints.dirpath",
        "Demo.root",
        "ImageNet100.class_list",
    } <= places
    found = {f"{name}.{key}".strip("."): o for name, table in tables.items() for key, o in options(table).items()}
    assert [place for place in sorted(places) if not is_path(found[place].type)] == []
    for name in ("train", "val", "test", "classnames", "templates"):
        assert is_path(found[f"CIFAR100.{name}"].type)


def test_lists_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "/here")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(modules.WebImages, "data")
    given = {"train": ["$PLACE/{0..3}.tar", "b/*.tar", "https://x.org/$PLACE/0.tar"], "classnames": ["$PLACE", "b"]}
    config = parser.parse_object({"data": given})
    settle_paths(config, {"data": class_table(modules.WebImages)}, [])
    assert config.data.train == ["/here/{0..3}.tar", str(tmp_path / "b/*.tar"), "https://x.org/$PLACE/0.tar"]
    assert config.data.classnames == ["$PLACE", "b"]  # names, not places


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/a/b", "/a/b"),
        ("a/../b", "{}/a/../b"),
        ("./a", "{}/a"),
        ("s3://a/b", "s3://a/b"),
        ("pipe:cat a", "pipe:cat a"),
    ],
)
def test_absolute(path: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(path) == found.format(tmp_path)


@pytest.mark.parametrize("hint", [int | float | None, float | int | None])
def test_one_batch_is_not_the_whole_split(hint: Any) -> None:
    parser = Parser(exit_on_error=False)
    parser.add_argument("--limit", type=hint)
    assert int_before_float(hint).__args__[0] is int
    for text, value in (("1", 1), ("1.0", 1.0), ("3", 3), ("0.5", 0.5)):
        for found in (parser.parse_args([f"--limit={text}"]).limit, parser.parse_object({"limit": value}).limit):
            assert found == value
            assert type(found) is type(value)


@pytest.mark.parametrize("key", ["limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches"])
def test_one_batch_of_the_trainer(key: str) -> None:
    kinds = [k for k in options(config_keys())[f"trainer.{key}"].type.__args__ if k in (int, float)]
    assert kinds == [int, float]

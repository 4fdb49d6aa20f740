"""Checkpoints that only running code could read are refused in words, and are not written in the first place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO, damage, usable

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.float64(0.5), "holds a numpy value among the tensors .*scalar"),
        (torch.nn.Linear(2, 2), "holds a pickled module .*Linear"),
        (Path("x"), "holds Python objects beside tensors .*pathlib"),
    ],
)
def test_they_are_named(tmp_path: Path, value: object, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 3, "state_dict": {"a": torch.zeros(3)}, "mine": value}, path)
    with pytest.raises(UserError, match=rf"{path}.*{words}"):
        SafeCheckpointIO().load_checkpoint(path)
    with pytest.raises(UserError, match=rf"{path}.*{words}"):
        usable(tmp_path)
    for command in (["export", f"--output={tmp_path / 'out'}"], ["fit", f"--config={CONFIG}"]):
        with pytest.raises(SystemExit) as caught:
            main([*command, f"--ckpt_path={path}"])
        assert caught.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert str(path) in error
        assert re.search(words, error)


def test_nothing_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "last.ckpt", tmp_path / "ran"
    torch.save({"mine": Runs(mark)}, path)
    assert "Python objects" in (damage(path) or "")
    assert not mark.exists()


def test_a_checkpoint_that_nobody_could_load_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"a": torch.zeros(3), "b": [1, "x", None, {"c": 2.5}]}, path)
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"last\.ckpt could not be read again: it holds a numpy value.*on_save_checkpoint"
    ):
        SafeCheckpointIO().save_checkpoint({"a": np.float32(3)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert damage(path) is None
    assert SafeCheckpointIO().load_checkpoint(path)["b"] == [1, "x", None, {"c": 2.5}]


def test_a_checkpoint_is_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.zeros(3)}, path)
    assert damage(path) is None
    monkeypatch.setattr("clt_lightning.runs.checkpoint_io.kinds.foreign_objects", lambda path: pytest.fail("again"))
    assert damage(path) is None

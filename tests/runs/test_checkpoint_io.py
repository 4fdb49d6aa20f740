"""Checkpoint files: whole or not there, and a damaged one is told from a whole one."""

from __future__ import annotations

import errno
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.runs import checkpoint_io
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO, damage, remove_temporaries, usable
from clt_lightning.runs.folder import LAST, PREVIOUS


def content(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"global_step": step, "state_dict": {"w": torch.randn(300, 7, generator=generator)}, "names": ["a", "b"]}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["global_step"] == b["global_step"] and torch.equal(a["state_dict"]["w"], b["state_dict"]["w"])


def test_the_state_before_stays_beside_the_last(tmp_path: Path) -> None:
    io = SafeCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(content(step), tmp_path / "checkpoints" / LAST)
    io.save_checkpoint(content(9), tmp_path / "checkpoints" / "best-step9.ckpt")
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best-step9.ckpt", LAST, PREVIOUS]
    assert same(io.load_checkpoint(folder / LAST), content(3))
    assert same(io.load_checkpoint(folder / PREVIOUS), content(2))
    assert same(torch.load(folder / LAST, weights_only=True), content(3))  # an ordinary file for everybody else
    assert usable(folder) == folder / LAST
    assert usable(tmp_path) is None


def test_every_kind_of_damage_is_recognised(tmp_path: Path) -> None:
    """A changed byte either is recognised or sits in padding, where it changes nothing that is read."""
    path = tmp_path / LAST
    SafeCheckpointIO().save_checkpoint(content(1), path)
    whole = path.read_bytes()
    rng = random.Random(0)
    recognised = 0
    for place in rng.sample(range(len(whole)), 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        if damage(path) is not None:
            recognised += 1
        else:
            assert same(torch.load(path, weights_only=True), content(1))
    assert recognised > 100
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert damage(path) is not None
    path.write_bytes(whole[:4000] + bytes(len(whole) - 4000))  # the size is right, the blocks never came to the disk
    assert damage(path) is not None
    path.write_bytes(whole)
    assert damage(path) is None
    assert damage(tmp_path / "absent.ckpt") == "it does not exist"


def test_a_damaged_last_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    io = SafeCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint(content(step), tmp_path / LAST)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-50])
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged: .*before it is used: .*previous\.ckpt"):
        assert usable(tmp_path) == tmp_path / PREVIOUS
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*--ckpt_path last"):
        io.load_checkpoint(tmp_path / LAST)
    (tmp_path / PREVIOUS).write_bytes(b"")
    io.save_checkpoint(content(7), tmp_path / "best-step7.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*previous\.ckpt is damaged.*best-step7\.ckpt"):
        usable(tmp_path)


def test_a_writer_that_dies_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies at each system call of a save in turn: what is found then is the old state or the new one, whole."""
    io = SafeCheckpointIO()

    class Death(BaseException):
        pass

    def dying(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] -= 1
            if calls[0] < 0:
                raise Death
            return real(*args, **kwargs)

        return call

    found = []
    for survived in range(8):
        folder = tmp_path / str(survived)
        for step in (1, 2):
            io.save_checkpoint(content(step), folder / LAST)
        calls = [survived]
        with monkeypatch.context() as patch:
            for name in ("fsync", "link", "replace"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                io.save_checkpoint(content(3), folder / LAST)
                break
            except Death:
                pass
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = usable(folder)
        assert path is not None
        found.append(torch.load(path, weights_only=True)["global_step"])
        remove_temporaries(folder)
        assert not list(folder.glob(".*"))
    assert found == [2, 2, 2, 2, 3]  # before fsync, link, the two renames, and before the folder's fsync


def test_without_hard_links_a_state_is_found_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    io = SafeCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(content(step), tmp_path / LAST)
    assert [torch.load(tmp_path / n, weights_only=True)["global_step"] for n in (LAST, PREVIOUS)] == [3, 2]
    (tmp_path / LAST).unlink()  # between the two renames
    assert usable(tmp_path) == tmp_path / PREVIOUS


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = SafeCheckpointIO()
    io.save_checkpoint(content(1), tmp_path / LAST)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clt_lightning.runs.checkpoint_io.os.fsync", full)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written: the disk is full; .*still holds"):
        io.save_checkpoint(content(2), tmp_path / LAST)
    assert [p.name for p in tmp_path.iterdir()] == [LAST]
    assert same(torch.load(tmp_path / LAST, weights_only=True), content(1))
    if os.path.exists("/dev/full"):
        monkeypatch.undo()
        monkeypatch.setattr(checkpoint_io, "temporary", lambda path: Path("/dev/full"))
        monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)
        with pytest.raises(UserError, match="cannot be written"):
            io.save_checkpoint(content(2), tmp_path / "other.ckpt")

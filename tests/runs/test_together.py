"""Parts that change as one: a writer that dies at any moment leaves all of the old ones, or all of the new."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.runs.lock import Lock
from clt_lightning.runs.together import settle, settle_to_read, together


class Death(BaseException):
    pass


def write(folder: Path, what: str, features: bool = True) -> None:
    with together(folder) as parts:
        parts.place("evaluation/test.npz").write_text(what)
        if features:
            path = parts.place("features")
            path.mkdir()
            for name in ("a", "b"):
                (path / f"{name}-{what}").write_text(what)
        parts.place("results.json").write_text(what)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "val.npz").write_text("other")
    write(tmp_path / "run", "old")
    return tmp_path / "run"


def test_all_parts_are_new_and_others_stay(folder: Path) -> None:
    write(folder, "new")
    assert content(folder) == {
        "evaluation/test.npz": "new",
        "evaluation/val.npz": "other",
        "features/a-new": "new",
        "features/b-new": "new",
        "results.json": "new",
    }
    write(folder, "newer", features=False)
    assert content(folder)["features/a-new"] == "new"
    assert content(folder)["results.json"] == "newer"


CALLS = ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "unlink"), (Path, "mkdir"))


def test_a_death_at_every_call_leaves_the_old_or_the_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, seen = content(folder), []
    new = {**{k: "new" for k in old if "features" not in k}, "features/a-new": "new", "features/b-new": "new"}
    new["evaluation/val.npz"] = "other"

    def dying(real: Any, after: bool) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Death
            found = real(*args, **kwargs)
            if left[0] == 0 and after:
                raise Death
            return found

        return call

    for after in (False, True):
        for survived in range(1, 100):
            run = folder.with_name(f"run-{survived}-{after}")
            shutil.copytree(folder, run)
            left = [survived]
            with monkeypatch.context() as patch:
                for owner, name in CALLS:
                    real = (lambda descriptor: None) if name == "fsync" else getattr(owner, name)  # disks are slow
                    patch.setattr(owner, name, dying(real, after))
                try:
                    write(run, "new")
                    died = False
                except Death:
                    died = True
            # whoever comes next settles; one who only reads does so, too
            settle_to_read(run) if survived % 2 else settle(run)
            if survived % 2:
                settle(run)
            now = content(run)
            assert now in (old, new), (survived, after)
            seen.append(now == new)
            if not died:
                break
        assert died is False
    assert True in seen
    assert False in seen


def test_a_full_disk_leaves_the_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = content(folder)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        write(folder, "new")
    assert content(folder) == old


def test_a_reader_leaves_it_to_a_writer_that_is_at_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("clt_lightning.runs.together.settle", lambda folder: None)
        write(folder, "new")
    assert content(folder)["results.json"] == "old"
    lock = Lock(folder)
    lock.acquire()
    settle_to_read(folder)
    assert content(folder)["results.json"] == "old"
    lock.release()
    settle_to_read(folder)
    assert content(folder)["results.json"] == "new"
    assert not list(folder.glob(".*"))

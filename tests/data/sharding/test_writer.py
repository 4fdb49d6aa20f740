"""Tars that are written whole or not at all, the same bytes every time, and go on after an interruption."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.data.sharding import writer
from clt_lightning.data.sharding.writer import Item, Limits, write_split
from clt_lightning.data.tars.layout import find_split

from ..world import images, numbers, picture


class StopError(Exception):
    pass


def items(count: int, *, fail_at: int | None = None, made: list[int] | None = None) -> list[Item]:
    def parts(i: int) -> Mapping[str, bytes]:
        if i == fail_at:
            raise StopError
        if made is not None:
            made.append(i)
        return {"png": picture(i), "cls": b"0"}

    return [Item(f"item-{i}", partial(parts, i)) for i in range(count)]


def test_members_tell_nothing_of_when_and_by_whom(tmp_path: Path) -> None:
    write_split(tmp_path, items(2))
    with tarfile.open(tmp_path / "0.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"s000000{i}.{suffix}" for i in (0, 1) for suffix in ("cls", "png")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {
        (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_the_public_layout_with_counts_and_checksums(tmp_path: Path) -> None:
    record = write_split(tmp_path / "train", items(25), limits=Limits(samples=10))
    assert (tmp_path / "train" / "nshards.txt").read_text() == "3\n"
    assert [s["samples"] for s in record["shards"]] == [10, 10, 5]
    assert json.loads((tmp_path / "train" / "shards.json").read_text()) == record
    for shard in record["shards"]:
        data = (tmp_path / "train" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert set(contents(tmp_path / "train")) == {"0.tar", "1.tar", "2.tar", "shards.json", "nshards.txt"}
    assert numbers(images(tmp_path).eval_dataloader("train")) == list(range(25))


def test_bytes_limit_and_determinism(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record = write_split(tmp_path / name, items(20), limits=Limits(bytes=10_000))
    assert len(record["shards"]) > 2
    assert all(s["bytes"] <= 10_000 + 10_240 for s in record["shards"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_one_sample_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    record = write_split(tmp_path, items(3), limits=Limits(bytes=10))
    assert [s["samples"] for s in record["shards"]] == [1, 1, 1]


def test_an_interrupted_run_goes_on_with_sound_shards(tmp_path: Path) -> None:
    limits = Limits(samples=5)
    write_split(tmp_path / "whole", items(23), limits=limits)
    folder = tmp_path / "cut"
    with pytest.raises(StopError):
        write_split(folder, items(23, fail_at=17), limits=limits)
    assert {p.name for p in folder.iterdir()} == {"0.tar", "1.tar", "2.tar", ".shards.partial.json"}
    assert not (folder / "nshards.txt").exists()
    (folder / ".3.tar.99.tmp").write_bytes(b"left by a kill")
    data = bytearray((folder / "1.tar").read_bytes())
    data[700] ^= 1
    (folder / "1.tar").write_bytes(data)
    made: list[int] = []
    write_split(folder, items(23, made=made), limits=limits)
    assert made == [*range(5, 10), *range(15, 23)]
    assert contents(folder) == contents(tmp_path / "whole")


def test_an_interrupted_run_may_start_again_with_other_options(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        write_split(tmp_path / "a", items(23, fail_at=17), limits=Limits(samples=2))
    write_split(tmp_path / "a", items(23), limits=Limits(samples=10))
    write_split(tmp_path / "b", items(23), limits=Limits(samples=10))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_run_killed_before_its_first_record_goes_on(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        write_split(tmp_path / "a", items(6, fail_at=0))
    (tmp_path / "a" / "0.tar").write_bytes(b"renamed, but not recorded")
    write_split(tmp_path / "a", items(6))
    write_split(tmp_path / "b", items(6))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_split_is_verified_and_kept(tmp_path: Path) -> None:
    write_split(tmp_path, items(12), limits=Limits(samples=5))
    made: list[int] = []
    write_split(tmp_path, items(12, made=made), limits=Limits(samples=5))
    assert made == []


def test_tars_from_elsewhere_are_never_overwritten(tmp_path: Path) -> None:
    write_split(tmp_path / "a", items(5))
    with pytest.raises(UserError, match="another source or with other settings"):
        write_split(tmp_path / "a", items(6))
    with pytest.raises(UserError, match="another source or with other settings"):
        write_split(tmp_path / "a", items(5), settings={"seed": 1})
    last = items(5)[4]
    for changed in (replace(last, group="another class"), replace(last, stamp="another size")):
        with pytest.raises(UserError, match="another source or with other settings"):
            write_split(tmp_path / "a", [*items(4), changed])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="did not write"):
        write_split(tmp_path / "b", items(5))
    assert (tmp_path / "b" / "0.tar").read_bytes() == b"precious"


@pytest.mark.parametrize("where", ["tar", "record"])
def test_a_full_disk_is_one_error_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    limits = Limits(samples=4)
    with monkeypatch.context() as m:
        if where == "tar":
            write, room = writer._Hashing.write, [60_000]

            def full(self: writer._Hashing, data: bytes) -> int:
                room[0] -= len(data)
                if room[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(self, data)

            m.setattr(writer._Hashing, "write", full)
        else:
            fsync = os.fsync
            calls = iter([0, 0, 0, 0, errno.ENOSPC])

            def full_sync(fd: int) -> None:
                if code := next(calls):
                    raise OSError(code, "No space left on device")
                fsync(fd)

            m.setattr("clt_lightning.data.sharding.writer.os.fsync", full_sync)
        with pytest.raises(UserError, match="disk is full"):
            write_split(tmp_path / "a", items(30), limits=limits)
    assert not list((tmp_path / "a").glob("*.tmp")) + list((tmp_path / "a").glob(".*.tmp"))
    assert not (tmp_path / "a" / "nshards.txt").exists()
    write_split(tmp_path / "a", items(30), limits=limits)
    write_split(tmp_path / "b", items(30), limits=limits)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert find_split(str(tmp_path), "train") is None


def test_what_was_not_verified_yet_is_not_forgotten(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        write_split(tmp_path, items(23, fail_at=20), limits=Limits(samples=5))
    (tmp_path / "0.tar").unlink()
    with pytest.raises(StopError):  # dies again, before it has looked at tars 1, 2 and 3
        write_split(tmp_path, items(23, fail_at=2), limits=Limits(samples=5))
    made: list[int] = []
    write_split(tmp_path, items(23, made=made), limits=Limits(samples=5))
    assert made == [*range(5), *range(20, 23)]


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b'{"fingerprint": "x", "shards": [{"samples": 0}]}', b"\xff", b'{"shards": 3}']
)
def test_a_record_that_cannot_be_read_frees_no_folder(tmp_path: Path, record: bytes) -> None:
    write_split(tmp_path, items(3))
    (tmp_path / "shards.json").write_bytes(record)
    with pytest.raises(UserError, match=r"files that this command did not write \(0\.tar, …\)"):
        write_split(tmp_path, items(3))


def test_two_commands_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        write_split(tmp_path, items(6, fail_at=0))
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on .*: wait for it"):
        write_split(tmp_path, items(6))
    os.close(other)
    write_split(tmp_path, items(6))


def test_what_the_source_refuses_is_not_said_of_the_tar(tmp_path: Path) -> None:
    def gone() -> Mapping[str, bytes]:
        return {"png": (tmp_path / "gone.png").read_bytes()}

    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file") as caught:
        write_split(tmp_path / "a", [Item("x", gone)])
    assert "written" not in str(caught.value)


def test_nothing_to_write_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample"):
        write_split(tmp_path, [])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be a folder"):
        write_split(tmp_path / "file", items(1))

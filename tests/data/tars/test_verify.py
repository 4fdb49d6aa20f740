"""Whether tars are the files that were written: sizes and counts always, checksums when asked."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.place import find_local_place
from clt_lightning.data.sharding.writer import Item, Limits, write_split
from clt_lightning.data.tars import index as indexing
from clt_lightning.data.tars.index import CACHE_NAME, build_index
from clt_lightning.data.tars.layout import ShardFile
from clt_lightning.data.tars.verify import verify

from ..world import images, picture
from ..world import write_split as write_foreign


def parts(i: int) -> dict[str, bytes]:
    return {"png": picture(i), "cls": b"0"}


def written(folder: Path, count: int = 12) -> Path:
    write_split(folder / "train", [Item(f"i{i}", partial(parts, i)) for i in range(count)], limits=Limits(samples=4))
    return folder


def flip(path: Path, at: int = 700) -> None:
    """Changes a byte, and neither size nor time."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    import os

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_changed_tar_is_named_when_asked(tmp_path: Path) -> None:
    root = written(tmp_path)
    images(root, verify=True).setup("fit")
    flip(root / "train" / "1.tar")
    images(root).setup("fit")
    with pytest.raises(UserError, match=r"1\.tar is not the file that was written.*SHA-256.*Copy it again"):
        images(root, verify=True).setup("fit")


def test_what_cannot_be_verified_is_said(tmp_path: Path) -> None:
    write_foreign(tmp_path / "a" / "train", [3])
    with pytest.raises(UserError, match=r"data\.init_args\.verify: .*shards\.json has no SHA-256 of 0\.tar"):
        images(tmp_path / "a", verify=True).setup("fit")
    with pytest.raises(UserError, match="no local file"):
        verify([ShardFile("https://host/0.tar", "0")])
    root = written(tmp_path / "b")
    (root / "train" / "shards.json").write_text("{")
    with pytest.raises(UserError, match=r"shards\.json, line 1: not JSON"):
        images(root, verify=True).setup("fit")


def test_the_processes_of_a_machine_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path)
    shards = [ShardFile(str(root / "train" / f"{i}.tar"), str(i)) for i in range(3)]
    flip(root / "train" / "2.tar")
    verify(shards, 1, 2)
    with pytest.raises(UserError, match=r"2\.tar"):
        verify(shards, 0, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert find_local_place(None) == (1, 2)
    images(root, verify=True).setup("fit")


def test_a_tar_of_another_size_or_count_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = written(tmp_path)
    record = json.loads((root / "train" / "shards.json").read_text())
    for key, words in (("bytes", "bytes, shards.json says 7"), ("samples", "4 samples, shards.json says 7")):
        changed = {"shards": [row | {key: 7} for row in record["shards"]]}
        (root / "train" / "shards.json").write_text(json.dumps(changed))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            images(root).setup("fit")
        assert words in caplog.text


@pytest.mark.parametrize("place", range(12))
def test_a_damaged_index_is_made_again(tmp_path: Path, place: int) -> None:
    root = written(tmp_path)
    files = [ShardFile(str(root / "train" / f"{i}.tar"), str(i)) for i in range(3)]
    sound = build_index(files)
    cache = root / "train" / CACHE_NAME
    data = bytearray(cache.read_bytes())
    for at in range(place * len(data) // 12, min(len(data), place * len(data) // 12 + 40)):
        data[at] ^= 0x55
    cache.write_bytes(data)
    again = build_index(files)
    for a, b in zip(sound, again):
        assert (a.samples, a.suffixes, a.faults) == (b.samples, b.suffixes, b.faults)
        assert a.spans is not None
        assert b.spans is not None
        assert np.array_equal(a.spans, b.spans)


@pytest.mark.parametrize(
    "change",
    [
        {"spans": np.zeros((2, 2), np.int64)},
        {"spans": np.zeros((12, 3), np.int64)},
        {"labels": np.zeros(12, np.float32)},
        {"meta": np.asarray("[]")},
        {"meta": np.asarray('{"version": 2}')},
        {"extras": np.zeros(1)},
        {"meta": None},
    ],
)
def test_an_index_that_does_not_fit_is_made_again(tmp_path: Path, change: dict[str, np.ndarray | None]) -> None:
    root = written(tmp_path)
    files = [ShardFile(str(root / "train" / f"{i}.tar"), str(i)) for i in range(3)]
    sound = build_index(files)
    cache = root / "train" / CACHE_NAME
    with np.load(cache) as data:
        content = {key: data[key] for key in data.files} | change
    np.savez(cache.open("wb"), **{key: value for key, value in content.items() if value is not None})
    assert [i.samples for i in build_index(files)] == [i.samples for i in sound] == [4, 4, 4]
    assert indexing._VERSION == 2

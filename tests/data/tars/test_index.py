"""Counting samples, finding their bytes, noticing damage."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.grouping import split_name
from clt_lightning.data.tars.index import CACHE_NAME, build_index
from clt_lightning.data.tars.layout import ShardFile
from clt_lightning.data.tars.reader import BadSample, RawSample, Run, ShardReader
from clt_lightning.data.tars.scan import ShardIndex, scan

from ..world import picture, samples, write_tar


def shard(path: Path) -> ShardFile:
    return ShardFile(str(path), path.name.split(".")[0])


def keys(index: ShardIndex, run: Run) -> list[str]:
    return [s.key if isinstance(s, RawSample) else s.kind for s in ShardReader([index]).read(run)]


@pytest.mark.parametrize(
    ("member", "key", "suffix"),
    [
        ("s1.png", "s1", "png"),
        ("./d/s1.JPG", "d/s1", "jpg"),
        ("a.b/s1.seg.png", "a.b/s1", "seg.png"),
        ("__meta__", None, ""),
        ("README", None, ""),
        (".hidden", None, ""),
    ],
)
def test_sample_names_follow_webdataset(member: str, key: str | None, suffix: str) -> None:
    assert split_name(member) == (key, suffix)


def test_a_scan_finds_counts_labels_and_suffixes(tmp_path: Path) -> None:
    index = scan(shard(write_tar(tmp_path / "0.tar", samples(5, 7))))
    assert index.samples == 7
    assert index.labels is not None
    assert index.labels.tolist() == [i % 10 for i in range(5, 12)]
    assert dict(index.suffixes) == {"png": 7, "cls": 7}
    assert not index.damage


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 7, 1), (2, 5, 1), (6, 7, 1), (1, 7, 3)])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_runs_read_exactly_their_samples(tmp_path: Path, start: int, stop: int, step: int, mode: str) -> None:
    index = scan(shard(write_tar(tmp_path / "0.tar", samples(0, 7), mode)))
    assert (index.spans is None) == (mode == "w:gz")
    assert keys(index, Run(0, start, stop, step)) == [f"0/s{i:07d}" for i in range(start, stop, step)]


def test_runs_in_any_order_from_one_reader(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", samples(10 * n, 4)) for n in range(2)]
    for mode in ("seek", "stream"):
        indexes = [scan(shard(p)) for p in paths]
        if mode == "stream":
            indexes = [ShardIndex(i.file, i.samples) for i in indexes]
        reader = ShardReader(indexes)
        for n, start, stop in [(0, 1, 3), (0, 3, 4), (1, 0, 2), (0, 0, 2), (1, 3, 4), (1, 1, 2)]:
            found = [s.key for s in reader.read(Run(n, start, stop)) if isinstance(s, RawSample)]
            assert found == [f"{n}/s{10 * n + i:07d}" for i in range(start, stop)], mode
        reader.close()


def test_long_names_directories_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    long = "d" * 120 + "/sample"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in [
            ("__meta__", b"x"),
            (f"{long}.png", picture(1)),
            (f"{long}.cls", b"1"),
            ("b.png", picture()),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            if name == "__meta__":
                folder = tarfile.TarInfo("d")
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
    index = scan(shard(path))
    assert index.samples == 2
    assert keys(index, Run(0, 0, 2)) == [f"0/{long}", "0/b"]


@pytest.mark.parametrize("how", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_gives_the_same_samples(tmp_path: Path, how: int) -> None:
    made = samples(0, 4)
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=how) as tar:
        for key, parts in made:
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mtime = len(data), 1.5  # PAX keeps the fraction in a header
                tar.addfile(info, io.BytesIO(data))
    index = scan(shard(path))
    found = list(ShardReader([index]).read(Run(0, 0, 4)))
    assert [f.parts for f in found if isinstance(f, RawSample)] == [parts for _, parts in made]


def test_tars_that_webdataset_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("tars.scan._scan_any", "tars.reader._any_members"):  # with a PAX header before every member
        monkeypatch.setattr(f"clt_lightning.data.{slow}", lambda *_: pytest.fail("the slow way"))
    with webdataset.ShardWriter(str(tmp_path / "%d.tar"), maxcount=3, verbose=0) as sink:
        for i in range(7):
            sink.write({"__key__": f"s{i:07d}", "png": picture(i), "cls": i})
    indexes = build_index([shard(tmp_path / f"{i}.tar") for i in range(3)])
    assert [i.samples for i in indexes] == [3, 3, 1]
    found = list(ShardReader(indexes).read(Run(1, 0, 3)))
    assert [f.parts for f in found if isinstance(f, RawSample)] == [
        {"png": picture(i), "cls": b"%d" % i} for i in (3, 4, 5)
    ]


def test_the_index_is_kept_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shard(write_tar(tmp_path / "0.tar", samples(0, 3)))
    first = build_index([file])[0]
    assert (tmp_path / CACHE_NAME).is_file()
    with monkeypatch.context() as m:
        m.setattr("clt_lightning.data.tars.index.scan", lambda f: pytest.fail("scanned again"))
        again = build_index([file])[0]
    assert again.samples == 3
    assert again.spans is not None
    np.testing.assert_array_equal(again.spans, first.spans)
    assert again.suffixes == first.suffixes
    write_tar(tmp_path / "0.tar", samples(0, 5))
    assert build_index([file])[0].samples == 5


def test_a_broken_or_unwritable_index_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    file = shard(write_tar(folder / "0.tar", samples(0, 3)))
    (folder / CACHE_NAME).write_bytes(b"garbage")
    assert build_index([file])[0].samples == 3
    (folder / CACHE_NAME).unlink()
    (folder / CACHE_NAME).mkdir()  # nobody, root included, can replace a folder by a file
    (folder / CACHE_NAME / "x").touch()
    assert build_index([file])[0].samples == 3
    assert list((tmp_path / "cache").rglob("*.npz"))
    assert not list(tmp_path.rglob("*.tmp"))


def cut(path: Path, keep: int) -> None:
    os.truncate(path, keep)


@pytest.mark.parametrize(("where", "sound"), [("in data", 2), ("in header", 3), ("garbage", 2)])
def test_a_damaged_tar_is_named_or_used_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, sound: int
) -> None:
    path = write_tar(tmp_path / "0.tar", [(k, {"png": p["png"]}) for k, p in samples(0, 5)])
    spans = scan(shard(path)).spans
    assert spans is not None
    if where == "in data":
        cut(path, int(spans[2][0]) + 520)
    elif where == "in header":
        cut(path, int(spans[3][0]) + 100)
    else:
        data = bytearray(path.read_bytes())
        data[int(spans[2][0]) : int(spans[2][0]) + 512] = b"\xff" * 512
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"0\.tar is truncated or damaged.*s000000"):
        build_index([shard(path)])
    with caplog.at_level(logging.WARNING):
        index = build_index([shard(path)], on_error="skip")[0]
    assert index.samples == sound
    assert "sound samples are used" in caplog.text
    assert keys(index, Run(0, 0, sound)) == [f"0/s{i:07d}" for i in range(sound)]


def test_a_sample_whose_second_member_is_cut_is_left_out(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "0.tar", [("a", {"cls": b"1", "png": picture()}), ("b", {"cls": b"2", "png": picture()})]
    )
    spans = scan(shard(path)).spans
    assert spans is not None
    cut(path, int(spans[1][0]) + 3 * 512 + 10)
    assert build_index([shard(path)], on_error="skip")[0].samples == 1


def test_empty_files_and_no_tars(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    (tmp_path / "1.tar").write_bytes(b"<html>not found</html>" * 100)
    for name in ("0", "1"):
        with pytest.raises(UserError, match=rf"{name}\.tar is truncated or damaged"):
            build_index([shard(tmp_path / f"{name}.tar")])


@pytest.mark.parametrize("hole", [(1, 1), (1, 2), (1, 8), (5, 1), (0, 3), (7, 1)])
@pytest.mark.parametrize("how", ["index", "stream"])
def test_a_hole_of_zeros_is_not_the_end(tmp_path: Path, hole: tuple[int, int], how: str) -> None:
    path = write_tar(tmp_path / "0.tar", [(f"s{i}", {"png": b"x" * 700, "cls": b"1"}) for i in range(4)])
    starts = [at for i in range(4) for at in (2560 * i, 2560 * i + 1536)]  # of the 8 members
    data = bytearray(path.read_bytes())
    start = starts[hole[0]]
    data[start : start + 512 * hole[1]] = bytes(512 * hole[1])
    path.write_bytes(data)
    if how == "index":
        with pytest.raises(UserError, match=r"0\.tar is truncated or damaged: (a block of zeros|behind its end mark)"):
            build_index([shard(path)])
    else:
        found = list(ShardReader([ShardIndex(shard(path), None)]).read(Run(0, 0, None)))
        assert isinstance(found[-1], BadSample)


def test_a_tail_of_zeros_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "0.tar", samples(0, 3))
    with path.open("ab") as f:
        f.write(bytes(2 << 20))
    with caplog.at_level(logging.WARNING):
        assert build_index([shard(path)])[0].samples == 3
    assert "bytes of zeros: was it downloaded to its end?" in caplog.text


def test_a_tar_that_is_cut_while_it_is_read_gives_bad_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", samples(0, 4))
    index = scan(shard(path))
    assert index.spans is not None
    cut(path, int(index.spans[2][0]) + 520)
    for known in (index, ShardIndex(index.file, 4)):
        found = list(ShardReader([known]).read(Run(0, 0, 4)))
        assert [type(f) for f in found] == [RawSample, RawSample, BadSample, BadSample]
        assert isinstance(found[2], BadSample)
        assert "0.tar" in found[2].message
        assert "number 2" in found[2].message


def test_counts_must_fit_the_shards() -> None:
    with pytest.raises(UserError, match="2 numbers for 1 shards"):
        build_index([ShardFile("https://host/0.tar", "0")], counts=[1, 2])

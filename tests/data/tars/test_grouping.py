"""Which members make a sample, and names that do not tell samples apart."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.grouping import Grouping, judge, split_name
from clt_lightning.data.tars.index import CACHE_NAME, build_index
from clt_lightning.data.tars.layout import ShardFile
from clt_lightning.data.tars.reader import BadSample, RawSample, Run, ShardReader
from clt_lightning.data.tars.scan import ShardIndex, scan

from ..world import images, picture


def write(path: Path, names: Sequence[str], mode: str = "w") -> ShardFile:
    """A tar of these members; each holds its place in the list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            data = str(i).encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return ShardFile(str(path), "0")


def read(index: ShardIndex) -> list[RawSample | BadSample]:
    return list(ShardReader([index]).read(Run(0, 0, index.samples)))


@pytest.mark.parametrize(
    "hidden",
    [".DS_Store", "train/.DS_Store", "__MACOSX/._0.jpg", "._0.jpg", "a/._0.jpg", ".git/x.jpg", "a/Thumbs.db", "README"],
)
def test_hidden_files_are_no_samples(tmp_path: Path, hidden: str) -> None:
    assert split_name(hidden) == (None, "")
    index = build_index([write(tmp_path / "0.tar", ["a/0.jpg", hidden, "a/0.cls", "a/1.jpg", "a/1.cls", hidden])])[0]
    assert [sorted(s.parts) for s in read(index) if isinstance(s, RawSample)] == [["cls", "jpg"], ["cls", "jpg"]]


@pytest.mark.parametrize(
    ("names", "key", "rule"),
    [
        (["photo.jpg", "photo.cls", "photo.2.jpg", "photo.2.cls"], "photo", "first dot"),
        (["photo.jpg", "photo.2.jpg"], "photo", "first dot"),
        (["photo.jpg", "photo.cls", "photo.b.jpg", "photo.b.cls"], "photo", "first dot"),
        (["img.001.jpg", "img.002.jpg", "img.003.jpg"], "img", "first dot"),
        (["img.001.jpg", "img.001.cls"], "img", "first dot"),
        (["a.jpg", "b.jpg", "holiday.jpg", "holiday.beach.jpg"], "holiday", "first dot"),
        (["holiday.jpg", "holiday.beach.jpg"], "holiday", "first dot"),
        (["x.jpg", "x.cls", "x.jpg", "x.cls"], "x", "one member of each suffix"),
        (["x.jpg", "x.JPG"], "x", "one member of each suffix"),
        (["./x.jpg", "x.jpg"], "x", "one member of each suffix"),
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], "a", "follow one another"),
        (["a.jpg", "a.cls", "b.jpg", "a.jpg", "a.cls"], "a", "follow one another"),
        (["x.jpg", "x.cls", "y.jpg", "y.cls", "x.jpg"], "x", "follow one another"),
        (["cat.jpg", "cat.png"], "cat", "one image"),
    ],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_names_that_mix_samples_are_refused(tmp_path: Path, names: list[str], key: str, rule: str, mode: str) -> None:
    file = write(tmp_path / "0.tar", names, mode)
    for _ in range(2):  # scanned, then from the cache
        with pytest.raises(UserError) as caught:
            build_index([file])
        message = str(caught.value)
        assert file.url in message
        assert f"sample {key!r}" in message
        assert rule in message
        assert "ack the tar again" in message or "Pack the tar in the order" in message
    assert (tmp_path / CACHE_NAME).exists()


def test_a_streamed_tar_is_judged_too(tmp_path: Path) -> None:
    for names, bad in (
        (["a.jpg", "x.jpg", "x.cls", "x.jpg", "b.jpg"], [1]),
        (["a.jpg", "b.jpg", "a.cls"], [2]),
        (["a.jpg", "a.2.jpg", "b.jpg"], [0]),
    ):
        file = write(tmp_path / "0.tar", names)
        found = read(ShardIndex(file, scan(file).samples))
        assert [i for i, sample in enumerate(found) if isinstance(sample, BadSample)] == bad
        assert {sample.kind for sample in found if isinstance(sample, BadSample)} == {"ambiguous sample"}


def test_suffixes_of_several_parts_are_told_from_names_by_the_whole_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [
        write(tmp_path / f"{n}.tar", [f"s{i}.{s}" for i in range(n * 4, n * 4 + 4) for s in ("jpg", "seg.png")])
        for n in range(2)
    ]
    files.append(write(tmp_path / "2.tar", ["s9.jpg", "s9.seg.png"]))  # alone in its tar, but not in the split
    files.append(write(tmp_path / "3.tar", ["t0.jpg", "t1.jpg", "t1.seg.png", "t2.jpg"]))
    with caplog.at_level(logging.WARNING):
        indexes = build_index(files)
    assert [i.samples for i in indexes] == [4, 4, 1, 3]
    assert "not read: seg.png (10 samples)" in caplog.text
    with pytest.raises(UserError, match=r"3\.tar, sample 't1'.*'seg\.png'"):
        build_index(files[3:])


def test_skipping_leaves_out_what_is_mixed_and_counts_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.png", "a.cls", "b.png", "b.cls", "b.png", "c.png", "c.cls", "a.png", "d.png", "d.x.png", "e.png"]
    path = tmp_path / "test" / "0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = b"1" if name.endswith("cls") else picture()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"sample 'a'.*4 samples of 1 tars"):
        images(tmp_path).setup("test")
    with caplog.at_level(logging.WARNING):
        loader = images(tmp_path, on_error="skip").test_dataloader()
        keys = [key for batch in loader for key in batch["key"]]
    assert keys == ["0/c"]
    assert dict(loader.skipped) == {"ambiguous sample": 4, "missing label": 1}
    assert "0/d" in caplog.text


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_members_without_content_are_no_lost_samples(tmp_path: Path, kind: bytes) -> None:
    file = write(tmp_path / "0.tar", ["a.jpg", "a.cls"])
    with tarfile.open(file.url, "a") as tar:
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = kind, "a.jpg"
        tar.addfile(info)
    with pytest.raises(UserError, match=r"sample 'b': its member 'jpg' is a link.*--dereference"):
        build_index([file])
    index = build_index([file], on_error="skip")[0]
    for known in (index, ShardIndex(file, index.samples)):
        assert [type(s) for s in read(known)] == [RawSample, BadSample]


def test_a_tar_behind_a_tar_is_not_lost(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, [f"{name}0.jpg", f"{name}1.jpg"]) for name in ("a", "b"))
    data = Path(first.url).read_bytes() + Path(second.url).read_bytes()
    (tmp_path / "0.tar").write_bytes(data)
    file = ShardFile(str(tmp_path / "0.tar"), "0")
    with pytest.raises(UserError, match=r"0\.tar.*members follow.*--concatenate"):
        build_index([file])
    assert build_index([file], on_error="skip")[0].samples == 2
    streamed = list(ShardReader([ShardIndex(file, None)]).read(Run(0, 0, None)))
    assert [type(s) for s in streamed] == [RawSample, BadSample]
    (tmp_path / "1.tar").write_bytes(Path(first.url).read_bytes() + b"a signature".ljust(512, b"\1"))
    assert build_index([ShardFile(str(tmp_path / "1.tar"), "1")])[0].samples == 2


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        for name in ("löwe.jpg", "löwe.cls", "l\xfcwe.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    found = read(build_index([ShardFile(str(path), "0")])[0])
    assert [s.key for s in found if isinstance(s, RawSample)] == [r"0/l\udcf6we", r"0/l\udcfcwe"]


def whole_seconds(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without a fraction, `tarfile` writes no PAX header for it."""
    info.mtime = 0
    return info


def test_folders_in_a_tar_cost_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"d{d}/s{i}.{suffix}" for d in range(2) for i in range(3) for suffix in ("jpg", "cls")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for folder in ("d0", "d1"):
            tar.add(tmp_path / folder, folder, recursive=False, filter=whole_seconds)
            for name in sorted(n for n in names if n.startswith(folder)):
                tar.add(tmp_path / name, name, filter=whole_seconds)
    monkeypatch.setattr("clt_lightning.data.tars.scan._scan_any", lambda *_: pytest.fail("the slow way"))
    monkeypatch.setattr("clt_lightning.data.tars.reader._any_members", lambda *_: pytest.fail("the slow way"))
    index = scan(ShardFile(str(tmp_path / "0.tar"), "0"))
    keys = [s.key for s in read(index) if isinstance(s, RawSample)]
    assert keys == [f"0/d{d}/s{i}" for d in range(2) for i in range(3)]


NAMES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "./a", "d/a", "d.x/b", "d/.h", "__MACOSX/._a"]),
        st.sampled_from(["jpg", "png", "cls", "txt", "json", "JPG", "2.jpg", "seg.png", "001.cls", ""]),
    ),
    max_size=8,
).map(lambda parts: [f"{key}.{suffix}" for key, suffix in parts])


@settings(max_examples=300, deadline=None)
@given(names=NAMES)
def test_every_sample_has_its_own_members_or_is_refused(names: list[str]) -> None:
    """Against the rule, written down as plainly as possible."""
    groups: list[tuple[str, list[str]]] = []
    for name in names:
        key, suffix = split_name(name)
        if key is not None:
            if not groups or groups[-1][0] != key:
                groups.append((key, []))
            groups[-1][1].append(suffix)
    grouping = Grouping()
    for name in names:
        key, suffix = split_name(name)
        if key is not None:
            grouping.add(key, suffix)
    faults = {fault.position for fault in grouping.finish()}
    keys = [key for key, _ in groups]
    assert grouping.samples == len(groups)
    assert faults == {i for i, (key, suffixes) in enumerate(groups) if keys.count(key) > 1 or judge(suffixes)[0]}
    for i, (_, suffixes) in enumerate(groups):
        if i not in faults:
            assert len(suffixes) == len(set(suffixes))
            assert sum(s in ("jpg", "png") for s in suffixes) <= 1
            assert not any(s[0].isdigit() for s in suffixes if s)

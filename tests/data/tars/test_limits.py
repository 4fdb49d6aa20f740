"""What claims to be huge is a bad sample, or one message, before memory is taken for it."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clt_lightning.data.sets.modules  # noqa: F401  # its imports are no part of what is measured
from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.index import build_index
from clt_lightning.data.tars.layout import ShardFile, expand, find_split
from clt_lightning.data.tars.limits import MAX_MEMBER_BYTES
from clt_lightning.data.tars.reader import BadSample, RawSample, Run, ShardReader
from clt_lightning.data.tars.scan import ShardIndex

from ..world import images, numbers, picture, write_root, write_tar

GB = 1 << 30


@contextmanager
def little_memory(megabytes: int = 40) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def small(name: str) -> bytes:
    return header(name, len(picture())) + block(picture())


def test_a_member_of_ten_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "train" / "0.tar"
    path.parent.mkdir()
    with path.open("wb") as f:  # holes: it takes no disk
        f.write(small("a.png") + header("b.png", 10 * GB))
        f.seek(10 * GB, 1)
        f.write(small("c.png") + small("d.png") + header("d.mp4", 10 * GB))  # d is sound: nobody reads its film
        f.seek(10 * GB, 1)
        f.write(bytes(1024))
    with little_memory():
        with pytest.raises(UserError, match=r"0\.tar, sample '0/b': its member 'b\.png' has 10,737,418,240 bytes"):
            list(images(tmp_path).eval_dataloader("train"))
        loader = images(tmp_path, on_error="skip").eval_dataloader("train")
        assert [key for batch in loader for key in batch["key"]] == ["0/a", "0/c", "0/d"]
        assert dict(loader.skipped) == {"sample too large": 1}
        assert len(list(images(tmp_path, on_error="skip", batch_size=3).train_dataloader())) == 1


def test_a_bomb_in_a_compressed_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clt_lightning.data.tars.stream.MAX_MEMBER_BYTES", 1 << 22)  # else it takes seconds to unpack
    path = tmp_path / "0.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(small("a.png") + header("b.png", 1 << 24))
        for _ in range(16):
            f.write(bytes(1 << 20))
        f.write(small("c.png") + bytes(1024))
    assert path.stat().st_size < 1 << 20
    file = ShardFile(str(path), "0")
    with little_memory(8):
        index = build_index([file])[0]
        for known in (index, ShardIndex(file, None)):
            found = list(ShardReader([known]).read(Run(0, 0, known.samples)))
            assert [type(s) for s in found] == [RawSample, BadSample, RawSample]
            assert isinstance(found[1], BadSample)
            assert found[1].kind == "sample too large"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_an_extended_header_that_is_a_bomb(tmp_path: Path, kind: bytes) -> None:
    with gzip.open(tmp_path / "0.tar.gz", "wb", compresslevel=1) as f:
        f.write(small("a.png") + header("x", 1 << 27, kind))
        f.write(bytes(1 << 21))
    with little_memory(), pytest.raises(UserError, match="extended header of 134,217,728 bytes"):
        build_index([ShardFile(str(tmp_path / "0.tar.gz"), "0")])


def test_a_negative_size_does_not_read_for_ever(tmp_path: Path) -> None:
    for size in (b"-0000001000\0", b"\xff" * 11 + b"\0"):
        head = bytearray(header("b.png", 0))
        head[124:136] = size
        head[148:156] = b"%06o\0 " % (256 + sum(head) - sum(head[148:156]))
        (tmp_path / "0.tar").write_bytes(small("a.png") + bytes(head) + bytes(2048))
        with pytest.raises(UserError, match=r"0\.tar is truncated or damaged"):
            build_index([ShardFile(str(tmp_path / "0.tar"), "0")])


def png(width: int, height: int) -> bytes:
    """A header, and the first row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(bytes(1 + 3 * width))  # nobody may get so far as to miss the other rows
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size


@pytest.mark.parametrize("how", ["png", "huge png", "webp"])
def test_an_image_of_too_many_pixels(tmp_path: Path, how: str) -> None:
    data = {
        "png": lambda: png(13_000, 13_000),
        "huge png": lambda: png(60_000, 4000),
        "webp": lambda: webp_header(1 << 24, 1 << 24),
    }[how]()
    write_tar(
        tmp_path / "train" / "0.tar", [("a", {"png": picture()}), ("b", {"webp" if how == "webp" else "png": data})]
    )
    with little_memory():
        with pytest.raises(UserError, match=r"sample '0/b': its `\w+` is too large"):
            list(images(tmp_path).eval_dataloader("train"))
        loader = images(tmp_path, on_error="skip").eval_dataloader("train")
        assert [key for batch in loader for key in batch["key"]] == ["0/a"]
        assert dict(loader.skipped) == {"image too large": 1}


def test_the_limit_on_pixels_is_an_option(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", [("a", {"png": picture(size=20)})])
    assert len(list(images(tmp_path, max_pixels=400).eval_dataloader("train"))) == 1
    with pytest.raises(UserError, match=r"20 x 20 are 400 pixels.*at most 399.*max_pixels"):
        list(images(tmp_path, max_pixels=399).eval_dataloader("train"))
    with pytest.raises(UserError, match="max_pixels must be"):
        images(tmp_path, max_pixels=10**10)


def test_an_array_is_no_larger_than_its_bytes(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    write_tar(tmp_path / "train" / "0.tar", [("a", {"png": picture(), "npy": out.getvalue()})])
    with little_memory(), pytest.raises(UserError, match=r"`npy` is not a numeric NumPy array \(shape \(10+,\)"):
        list(images(tmp_path).eval_dataloader("train"))


@pytest.mark.parametrize("stated", ["99999999999", "9" * 30, "9" * 5000])
def test_nshards_beyond_all_measure(tmp_path: Path, stated: str) -> None:
    root = write_root(tmp_path, train=[1])
    (root / "train" / "nshards.txt").write_text(stated)
    with little_memory(), pytest.raises(UserError, match=r"nshards\.txt (says|must hold)"):
        find_split(str(root), "train")
    (root / "train" / "nshards.txt").write_text("900000")
    with (
        little_memory(),
        pytest.raises(UserError, match=r"says 900000 shards.*1\.tar, 2\.tar, 3\.tar and 899996 more missing"),
    ):
        find_split(str(root), "train")


def test_braces_beyond_all_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clt_lightning.data.tars.layout.MAX_SHARDS", 1000)
    with pytest.raises(UserError, match="more than 1,000 shards"):
        expand("https://host/{0..99999999999}.tar", "train")
    with pytest.raises(UserError, match=r"braces .* do not match"):
        expand("x{0..1.tar", "train")


def test_what_is_large_but_allowed_is_read(tmp_path: Path) -> None:
    """A sample beside a large file that we do not read, and one just below the limit."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)).save(out, "BMP")
    write_tar(tmp_path / "train" / "0.tar", [("s0", {"bmp": out.getvalue()}), ("s1", {"png": picture(1)})])
    assert len(out.getvalue()) < MAX_MEMBER_BYTES
    assert numbers(images(tmp_path).eval_dataloader("train")) == [0, 1]

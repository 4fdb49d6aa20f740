"""`shard folder` on folders and archives as people have them: every image in, or named and said why not."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from clt_lightning.core.errors import UserError
from clt_lightning.data import WebImages
from clt_lightning.data.sets.folder.shard import open_folder
from clt_lightning.data.shard import run
from clt_lightning.data.sharding.sources import open_tree
from clt_lightning.data.tars.reader import RawSample

from ..world import picture, to_tensor
from .test_shard import arguments, raw, shard


def put(folder: Path, *names: str) -> Path:
    """Images with their place in the list as brightness, and other files as they are called."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i))
    return folder


def made(output: Path) -> WebImages:
    dm = WebImages(root=str(output), num_workers=0, batch_size=4)
    dm.transform = to_tensor
    return dm


def packed(source: Path, output: Path, *more: str, split: str = "train") -> list[RawSample]:
    """The samples that come out, all of one split, in the source's order."""
    shard("folder", source, output, "--shuffle-seed", "-1", "--val-fraction", "0", *more)
    return raw(made(output), split)


def classes(samples: list[RawSample]) -> list[int]:
    return [int(s.parts["cls"]) for s in samples]


# -- which folder is the class ----------------------------------------------------------------------------------------


def test_the_first_folder_is_the_class(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "cat/0.png", "cat/indoor/old/1.png", "dog/2.png", "dog/cat/3.png")
    assert classes(packed(source, tmp_path / "out")) == [0, 0, 1, 1]
    assert made(tmp_path / "out").split("train") is not None
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\ndog\n"


def test_the_first_folder_below_a_split_is_the_class(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "training/cat/a/0.png", "training/dog/1.png", "dev/dog/b/2.png", "Test/cat/3.png")
    assert classes(packed(source, tmp_path / "out")) == [0, 1]
    assert classes(raw(made(tmp_path / "out"), "val")) == [1]
    assert classes(raw(made(tmp_path / "out"), "test")) == [0]


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", "dogs/0.png", "dogs/deep/1.png", "2.png")
    source = put(tmp_path / "s", "cat/3.png")
    (source / "dog").symlink_to(elsewhere / "dogs", target_is_directory=True)
    (source / "cat" / "linked.png").symlink_to(elsewhere / "2.png")
    # the same folder twice is no circle
    (source / "dog too").symlink_to("dog", target_is_directory=True)
    samples = packed(source, tmp_path / "out")
    assert sorted(classes(samples)) == [0, 0, 1, 1, 2, 2]
    assert samples[1].parts["png"] == picture(2)


@pytest.mark.parametrize("seed", range(4))
def test_classes_are_those_of_torchvision(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    elsewhere = put(tmp_path / "elsewhere", *(f"{i}/{rng.choice(['', 'deep/'])}{i}.png" for i in range(3)))
    folders = [f"{c}{'/x' * rng.randrange(3)}" for c in rng.sample("abcdefg", 4) for _ in range(3)]
    source = put(
        tmp_path / "s", *(f"{folder}/{i}.{rng.choice(['png', 'PNG', 'bmp'])}" for i, folder in enumerate(folders))
    )
    for i in range(3):  # as a class, and within one
        (source / rng.choice(["", f"{folders[0][0]}/"]) / f"link {i}").symlink_to(elsewhere / f"{i}")
    theirs = ImageFolder(str(source))
    expected = sorted((Path(path).read_bytes(), theirs.classes[label]) for path, label in theirs.samples)
    samples = packed(source, tmp_path / "out")
    names = (tmp_path / "out" / "classnames.txt").read_text().split("\n")
    found = [(data, names[int(s.parts["cls"])]) for s in samples for suffix, data in s.parts.items() if suffix != "cls"]
    assert sorted(found) == expected


@pytest.mark.parametrize("target", ["..", ".", "../..", "../../s/cat"])
def test_links_in_a_circle_are_refused(tmp_path: Path, target: str) -> None:
    source = put(tmp_path / "s", "cat/0.png")
    (source / "cat" / "round").symlink_to(target, target_is_directory=True)
    with pytest.raises(UserError, match=r"cat/round is a link to a folder that it lies in \(.*take it out"):
        packed(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "cat/0.png")
    (source / "cat" / "README").symlink_to("/nowhere")  # no image: nobody misses it
    packed(source, tmp_path / "fine")
    (source / "cat" / "1.png").symlink_to("/nowhere")
    (source / "cat" / "2.png").symlink_to("2.png")
    with pytest.raises(UserError, match=r"cat/1\.png is a link that leads nowhere \(/nowhere\); 1 more|symbolic links"):
        packed(source, tmp_path / "out")


def test_a_pipe_among_the_images_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "cat/0.png")
    os.mkfifo(source / "cat" / "1.png")  # reading it would wait for ever
    with pytest.raises(UserError, match=r"1\.png is no regular file"):
        packed(source, tmp_path / "out")


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "s", "cat/0.png", "locked/1.png")
    scandir = os.scandir

    def refusing(path: str | os.PathLike[str]) -> object:
        if os.fspath(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    with monkeypatch.context() as m:  # root, who runs tests in containers, may read everything
        m.setattr(os, "scandir", refusing)
        with pytest.raises(UserError, match=r"s/locked.* cannot be read: Permission denied"):
            packed(source, tmp_path / "out")

    read = Path.read_bytes

    def no_file(path: Path) -> bytes:
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", no_file)
    with pytest.raises(UserError, match=r"locked/1\.png cannot be read: Permission denied$"):
        packed(source, tmp_path / "out")
    assert not list(tmp_path.rglob("*.tmp"))


# -- which files are images -------------------------------------------------------------------------------------------

FORMATS = {
    "a.jpg": ("JPEG", "jpg"),
    "b.JPEG": ("JPEG", "jpg"),
    "c.jfif": ("JPEG", "jpg"),
    "d.jpe": ("JPEG", "jpg"),
    "e.png": ("PNG", "png"),
    "f.webp": ("WEBP", "webp"),
    "g.bmp": ("BMP", "bmp"),
    "h.tif": ("TIFF", "tif"),
    "i.TIFF": ("TIFF", "tif"),
    "j.gif": ("GIF", "gif"),
    "k.ppm": ("PPM", "ppm"),
    "l.pgm": ("PPM", "ppm"),
}


def test_every_usual_format_is_packed_and_read(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name, (kind, _) in FORMATS.items():
        Image.new("L" if name == "l.pgm" else "RGB", (16, 16), 200 if name == "l.pgm" else (200, 200, 200)).save(
            tmp_path / "s" / name, kind
        )
    samples = packed(tmp_path / "s", tmp_path / "out")
    assert [next(iter(s.parts)) for s in samples] == [suffix for _, suffix in FORMATS.values()]
    assert [next(iter(s.parts.values())) for s in samples] == [(tmp_path / "s" / n).read_bytes() for n in FORMATS]
    batches = list(made(tmp_path / "out").eval_dataloader("train"))
    pixels = torch.cat([batch["image"] for batch in batches])
    assert len(pixels) == len(FORMATS)
    assert float((pixels - 200 / 255).abs().max()) < 0.02


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", "cat/0.png", "dog/1.png")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/c.npy", "dog/LICENSE", "cat/README.txt", ".hidden", "dog/.d.heic"):
        (source / name).write_bytes(b"x")
    assert len(packed(source, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "files that are no images are left out: 2 x .heic, 1 x .npy, 1 x .txt, 1 x no ending" in said
    assert "2 images of 2 classes" in said
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.heic").touch()
    with pytest.raises(UserError, match=r"holds no image \(1 x \.heic\)"):
        packed(tmp_path / "none", tmp_path / "out2")


def test_hidden_files_are_no_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", "train/cat/0.png", "test/cat/1.png")
    for name in (".DS_Store", "train/.DS_Store", "train/cat/._0.png", "__MACOSX/train/cat/._0.png", ".git/x/y.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"\0\5\x16\7")
    (source / ".git" / "loop").symlink_to(source, target_is_directory=True)
    assert classes(packed(source, tmp_path / "out")) == [0]
    assert classes(raw(made(tmp_path / "out"), "test")) == [0]
    assert "left out" not in capsys.readouterr().err


def test_empty_images_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", "cat/0.png", "cat/1.png", "dog/2.png")
    (source / "cat" / "0.png").write_bytes(b"")
    (source / "dog" / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 images are empty \(0 bytes\), the first is cat/0\.png: .*--on-error skip"):
        packed(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert classes(packed(source, tmp_path / "out", "--on-error", "skip")) == [0, 1]
    assert "2 empty images are left out, the first is cat/0.png" in capsys.readouterr().err


def test_class_folders_without_an_image_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", "train/cat/0.png", "test/dog/1.png")
    for name in ("train/empty", "train/dog", "docs", "train/cat/deeper"):
        (source / name).mkdir()
    packed(source, tmp_path / "out")
    said = capsys.readouterr().err
    assert "class folders without an image are left out: train/dog, train/empty\n" in said
    assert "2 images of 2 classes" in said


# -- names that leave open what is meant ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train/a/0.png", "val/a/1.png", "valid/a/1.png"), "val and valid would both be the val split"),
        (("train/a/0.png", "Train/a/0.png"), "Train and train would both be the train split"),
        (("train/a/0.png", "test/a/1.png", "extra/a/2.png"), r"images beside them \(extra/a/2\.png\)"),
        (("train/a/0.png", "test/a/1.png", "cover.png"), r"images beside them \(cover\.png\)"),
        (("mine/train/a/0.png", "mine/test/a/1.png"), r"the splits test, train lie in .*s/mine: give that as --source"),
        (("a/0.png", "1.png"), r"some do not \(1\.png\)"),
        (("big_cat/0.png", "big cat/1.png"), "'big cat' and 'big_cat' are both the class 'big cat'"),
        (("two\nlines/0.png", "b/1.png"), r"class folder 'two\\nlines' cannot be a line of classnames\.txt"),
    ],
)
def test_names_that_leave_open_what_is_meant(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        packed(put(tmp_path / "s", *names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_only_look_odd(tmp_path: Path) -> None:
    names = (
        "train/0.png",
        "bus/1.png",
        "_/2.png",
        " spaced /3.png",
        "#hash/4.png",
        "-x/new\nline.png",
        "ü/猫.png",
        "a\u00a0b/7.png",
    )
    samples = packed(put(tmp_path / "s", *names), tmp_path / "out")
    dm = made(tmp_path / "out")
    dm.setup("fit")
    assert dm.classnames is not None
    expected = ["train", "bus", "_", "spaced", "#hash", "-x", "ü", "a b"]
    assert sorted(dm.classnames) == sorted(expected)
    by_class = {dm.classnames[int(s.parts["cls"])]: s.parts["png"] for s in samples}
    assert by_class == {name: picture(i) for i, name in enumerate(expected)}


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "cat/0.png")
    try:
        Path(os.fsdecode(os.fsencode(source) + b"/cat/caf\xe9.png")).write_bytes(picture(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert len(packed(source, tmp_path / "out")) == 2
    assert len(packed(source, tmp_path / "out")) == 2  # verified and kept
    Path(os.fsdecode(os.fsencode(source) + b"/\xe9")).mkdir()
    Path(os.fsdecode(os.fsencode(source) + b"/\xe9/1.png")).write_bytes(picture(1))
    with pytest.raises(UserError, match="cannot be a line of classnames"):
        packed(source, tmp_path / "out2")


# -- captions ---------------------------------------------------------------------------------------------------------


def captions(samples: list[RawSample]) -> list[list[str]]:
    return [s.parts["txt"].decode().split("\n") if "txt" in s.parts else [] for s in samples]


def test_captions_from_metadata_and_from_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", "train/0.png", "train/1.png", "train/2.png", "train/3.png", "test/4.png")
    table = 'file_name,text,n\r\n1.png,"one, two\n three",5\r\n0.png,zero,6\r\n./1.png,again,7\r\n3.png,,8\r\n'
    (source / "train" / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    (source / "train" / "0.txt").write_text("beside\r\n\r\nit\n")
    (source / "test" / "metadata.jsonl").write_text('{"file_name": "4.png", "captions": ["a", "b"]}\n\n')
    samples = packed(source, tmp_path / "out")
    assert captions(samples) == [["beside", "it", "zero"], ["one, two three", "again"], [], []]
    assert captions(raw(made(tmp_path / "out"), "test")) == [["a", "b"]]
    batch = next(iter(made(tmp_path / "out").eval_dataloader("train")))
    assert batch["captions"] == captions(samples)
    assert "left out" not in capsys.readouterr().err


def test_metadata_above_the_splits_and_beside_classes(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "train/cat/0.png", "train/dog/1.png")
    (source / "metadata.csv").write_text("file_name,caption\ntrain/dog/1.png,a dog\n")
    (source / "train" / "cat" / "metadata.csv").write_text("file_name,text\n0.png,a cat\n")
    samples = packed(source, tmp_path / "out")
    assert captions(samples) == [["a cat"], ["a dog"]]
    assert classes(samples) == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metadata.csv", b"file_name,text\n0.png,a\n9.png,b\n", r"metadata\.csv, line 3: there is no image '9\.png'"),
        ("metadata.csv", b"file_name,text\n../0.png,a\n", r"line 2: there is no image '\.\./0\.png'"),
        ("metadata.csv", b"file_name,text\n0.png,a, b\n", r"metadata\.csv, line 2: .*quotes around captions"),
        ("metadata.csv", b"file_name,text\n0.png\n", r"metadata\.csv, line 2: .*as many fields"),
        ("metadata.csv", b"file_name,text\n0.png,caf\xe9\n", r"metadata\.csv, line 2: byte 0xe9 is not UTF-8"),
        ("metadata.csv", b'file_name,text\n0.png,"open\n', r"metadata\.csv, line \d: not CSV"),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": "a"}\n{"file', r"metadata\.jsonl, line 2: not JSON"),
        ("metadata.jsonl", b"[1]\n", r"metadata\.jsonl, line 1: it must be a table"),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": 3}\n', r"line 1: a caption must be a text"),
        ("0.txt", b"caf\xe9\n", r"0\.txt, line 1: byte 0xe9 is not UTF-8"),
    ],
)
def test_captions_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    source = put(tmp_path / "s", "0.png")
    (source / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        packed(source, tmp_path / "out")


def test_a_table_of_something_else_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", "0.png")
    (source / "metadata.csv").write_text("id,split\n0,train\n")
    assert len(packed(source, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "metadata.csv has no column file_name: no captions are taken from it" in said
    assert "left out: 1 x .csv" in said


# -- archives ---------------------------------------------------------------------------------------------------------


def zipped(path: Path, files: Mapping[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            if change is not None:
                change(info)
            archive.writestr(info, data)
    return path


def tarred(path: Path, files: Mapping[str, bytes], *links: tuple[str, str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


FILES = {
    "./set/train/cat/0.png": picture(0),
    "./set/train/dog/deep/1.png": picture(1),
    "./set/test/cat/2.png": picture(2),
    "./set/train/._x.png": b"x",
    "./__MACOSX/._0.png": b"x",
    "./set/train/cat/0.txt": b"a cat",
}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_archive_with_a_folder_around_it(
    tmp_path: Path, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    samples = packed(make(tmp_path / "set.archive", FILES), tmp_path / "out")
    assert classes(samples) == [0, 1]
    assert captions(samples) == [["a cat"], []]
    assert classes(raw(made(tmp_path / "out"), "test")) == [0]
    assert "everything lies in set/, which is passed over" in capsys.readouterr().err


def test_hard_links_in_a_tar_are_followed(tmp_path: Path) -> None:
    source = tarred(tmp_path / "a.tar", {"cat/0.png": picture(0)}, ("dog/1.png", "cat/0.png", tarfile.LNKTYPE))
    samples = packed(source, tmp_path / "out")
    assert classes(samples) == [0, 1]
    assert samples[0].parts["png"] == samples[1].parts["png"]


def test_archives_that_cannot_be_packed_whole_are_refused(tmp_path: Path) -> None:
    image = {"cat/0.png": picture(0)}

    def as_link(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    twice = tmp_path / "twice.zip"
    zipped(twice, image)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("cat/0.png", picture(1))
    secret = zipped(tmp_path / "secret.zip", image)
    data = bytearray(secret.read_bytes())
    for at, head in ((6, b"PK\3\4"), (8, b"PK\1\2")):  # what encrypts sets this flag, and zipfile cannot write it
        data[data.index(head) + at] |= 1
    secret.write_bytes(data)
    both = tarred(tmp_path / "both.tar", image)
    tarred(both, {"cat/0.png": picture(1)}, mode="a")
    for source, words in (
        (zipped(tmp_path / "link.zip", {"cat/0.png": b"../x.png"}, as_link), r"cat/0\.png is a symbolic link: unpack"),
        (twice, r"twice\.zip holds cat/0\.png twice"),
        (secret, r"cat/0\.png is encrypted"),
        (tarred(tmp_path / "l.tar", image, ("dog/1.png", "../x.png", tarfile.SYMTYPE)), "dog/1.png is a symbolic link"),
        (
            tarred(tmp_path / "h.tar", image, ("dog/1.png", "gone.png", tarfile.LNKTYPE)),
            "link to gone.png, which is not",
        ),
        (both, r"both\.tar holds cat/0\.png twice"),
        (tarred(tmp_path / "a.tar.gz", image, mode="w:gz"), r"compressed \(gzip\).*unpack it"),
        (tarred(tmp_path / "a.tar.xz", image, mode="w:xz"), r"compressed \(xz\).*unpack it"),
    ):
        with pytest.raises(UserError, match=words):
            packed(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_in_a_zip_is_named(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", {"cat/0.png": picture(0), "cat/1.png": picture(1)})
    data = bytearray(source.read_bytes())
    data[data.index(picture(1)) + 20] ^= 255
    source.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip: cat/1\.png is damaged"):
        packed(source, tmp_path / "out")
    (tmp_path / "no.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"no\.zip is damaged or not an archive"):
        packed(tmp_path / "no.zip", tmp_path / "out2")


# -- where the tars go ------------------------------------------------------------------------------------------------


def test_the_output_stays_out_of_the_source(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "train/cat/0.png", "test/cat/1.png")
    for output in (source, source / "tars", tmp_path / "s" / ".." / "s" / "x"):
        with pytest.raises(UserError, match=r"--output .* lies in --source .*s: name a folder outside"):
            packed(source, output)
    with pytest.raises(UserError, match=r"train already holds files that this command did not write \(cat, …\)"):
        packed(source / "train", source)  # <output>/train is the source
    assert sorted(p.name for p in source.rglob("*") if p.is_file()) == ["0.png", "1.png"]


def test_names_of_other_tars_are_not_overwritten(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "test/cat/0.png", "test/dog/1.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "classnames.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=r"classnames\.txt already says something else, of other tars"):
        packed(source, tmp_path / "out", split="test")
    assert not (tmp_path / "out" / "test").exists()
    (tmp_path / "out" / "classnames.txt").write_text("cat\ndog\n")
    assert classes(packed(source, tmp_path / "out", split="test")) == [0, 1]


def test_a_source_that_has_changed_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "cat/0.png", "cat/1.png")
    packed(source, tmp_path / "out")
    (source / "cat" / "1.png").write_bytes(picture(1) + b"longer")
    with pytest.raises(UserError, match="another source or with other settings"):
        packed(source, tmp_path / "out")


def test_paths_with_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "s", "cat/0.png")
    monkeypatch.setenv("MYDATA", str(tmp_path))
    shard("folder", Path("$MYDATA/s"), Path("${MYDATA}/out"))
    assert (tmp_path / "out" / "train" / "0.tar").is_file()
    with pytest.raises(UserError, match=r"--output='\$NOT_SET_9/out': the environment variable NOT_SET_9 is not set"):
        shard("folder", Path("$MYDATA/s"), Path("$NOT_SET_9/out"))
    with pytest.raises(UserError, match="--source is empty"):
        run(arguments("folder", "--source", "", "--output", "x"))


def test_where_nothing_can_be_written_is_said_before_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put(tmp_path / "s", "cat/0.png")
    (tmp_path / "file").touch()
    for output, words in (
        (tmp_path / "file", r"file is a file: name a folder"),
        (tmp_path / "file" / "deeper" / "out", r"file is a file: name a folder"),
        (tmp_path / ("x" * 300), "File name too long: name another folder"),
    ):
        with pytest.raises(UserError, match=words):
            packed(source, output)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written"):
        packed(source, tmp_path / "locked" / "out")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["--val-fraction=1", "--val-fraction=-0.1", "--val-fraction=nan", "--limit=inf"])
def test_numbers_that_make_no_sense(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        packed(tmp_path, tmp_path / "out", option)
    assert "must be a number" in capsys.readouterr().err


# -- val, end to end --------------------------------------------------------------------------------------------------


def test_a_val_split_is_made_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", *(f"train/{c}/{i:02d}.png" for c in "abc" for i in range(40)), "test/a/0.png")
    shard("folder", source, tmp_path / "out")
    dm = made(tmp_path / "out")
    assert sorted(classes(raw(dm, "val"))) == [0, 0, 1, 1, 2, 2]
    assert sorted(classes(raw(dm, "train"))) == [0] * 38 + [1] * 38 + [2] * 38
    assert len(raw(dm, "test")) == 1
    images = [s.parts["png"] for split in ("train", "val") for s in raw(dm, split)]
    assert sorted(images) == sorted(picture(i) for i in range(120))
    assert "val: 6 of 120 training samples are held out (5 % of every class; --val-fraction)" in capsys.readouterr().err
    shard("folder", source, tmp_path / "out", "--val-fraction", "0.05")  # the same: verified and kept
    with pytest.raises(UserError, match="other settings"):
        shard("folder", source, tmp_path / "out", "--val-fraction", "0")
    shard("folder", source, tmp_path / "plain", "--val-fraction", "0")
    assert not (tmp_path / "plain" / "val").exists()


def test_many_files_are_listed_in_a_moment(tmp_path: Path) -> None:
    for group in range(20):
        (tmp_path / f"class {group}").mkdir()
    for i in range(20_000):
        (tmp_path / f"class {i % 20}" / f"{i}.jpg").write_bytes(b"x")
    start = time.process_time()
    found = open_folder(tmp_path)
    assert time.process_time() - start < 4  # 0.3 s; it was 18 s, and grew with the square
    assert len(found.splits["train"]) == 20_000


def test_a_tree_is_listed_in_order(tmp_path: Path) -> None:
    put(tmp_path / "s", "b/1.png", "a/2.png", "a.png", "a/b/0.png")
    assert open_tree(tmp_path / "s").images == ["a.png", "a/2.png", "a/b/0.png", "b/1.png"]


def test_the_command_line_says_it_in_one_message(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "cat/0.png")
    (source / "cat" / "1.png").write_bytes(b"")
    words = ["shard", "folder", "--source", str(source), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "clt_lightning", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1

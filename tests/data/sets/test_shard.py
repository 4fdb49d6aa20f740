"""The `shard` command on small copies of the official archives, in their real formats."""

from __future__ import annotations

import argparse
import base64
import codecs
import io
import json
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clt_lightning.core.errors import UserError
from clt_lightning.data import CIFAR100, COCO, ImageNet100
from clt_lightning.data.sets.base import WebImages
from clt_lightning.data.sets.cifar100.shard import open_cifar100
from clt_lightning.data.sets.imagenet100.matfile import read_struct
from clt_lightning.data.shard import add_arguments, run
from clt_lightning.data.tars.reader import RawSample, Run, ShardReader

from ..world import picture, to_tensor

# ILSVRC2012's meta.mat in small, as SciPy writes it: ids 1, 2, 3, 490 of n02107142, n01440764, n02869837, n02488291
META_MAT = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMTA6NDQ6NTQgMjAyNgAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAegEAAHic7VRBToNAFJ02tYVNU3XpZg7QBSBp6UoSu7CJ"
    "MY0aXRJKJ0CEoWFojBvXHqAH8IgewRkZcDpBSYrRmPQnn+F98t7M//NCHwAwUAHo0lWh2QZ5HHDcodni2aNJnjBBGaHfO+CQ119ozi5v7q7PDU"
    "03nNmUCdxf5WsZj0m6JGLBjxKyVcDr2PGCMFqmCH8UtkChgVHmBCj0g4xTstQNsRPGro8I6NOiBT776Ur9tIRkofJ6Hm9njG8L/E4FXxX4A46x"
    "ZujaWDcNXmc68xqdE0mH4WmyQGns4iEs3uAqxMQLUFrqWjW6PUmXYRfm4242n3x/u4bflviDkq3Y/FT2T5xjZ/5803R/e3ef6KapjUem0MdFjc"
    "6RpMNwhrAXDOFtiD0XZuxZPZe/8If2Db8IkV917v/lB6WBHwxrNLFOx0IfdX44lnQYXiSY/hiHcJU8IJiDyrns/fALfnh9buIH07KMif5FH1U6"
    "XUmH4cjF/jrd3/+u9/8O+ipnnQ=="
)
DOG, TENCH, BONNET = "n02107142", "n01440764", "n02869837"


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def shard(kind: str, source: Path, output: Path, *more: str) -> int:
    return run(arguments(kind, "--source", str(source), "--output", str(output), *more))


def raw(dm: WebImages, split: str) -> list[RawSample]:
    found = dm.split(split)
    assert found is not None
    reader = ShardReader(found.shards)
    read = [s for i, shard in enumerate(found.shards) for s in reader.read(Run(i, 0, shard.samples))]
    assert all(isinstance(s, RawSample) for s in read)
    return read  # type: ignore[return-value]


def trained_and_validated(dm: WebImages) -> list[RawSample]:
    """All training samples of a source: those in `train`, and those that were held out of it."""
    train, val = raw(dm, "train"), raw(dm, "val")
    assert train
    assert val
    return train + val


def tar_bytes(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


# -- CIFAR-100 --------------------------------------------------------------------------------------------------------


def cifar(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    pixels = {"train": rng.integers(0, 256, (30, 3072), np.uint8), "test": rng.integers(0, 256, (12, 3072), np.uint8)}
    names = [f"fine_{i}" for i in range(100)]
    files = {"cifar-100-python/meta": pickle.dumps({"fine_label_names": names, "coarse_label_names": []}, 2)}
    for split, data in pixels.items():
        labels = [(7 * i) % 100 for i in range(len(data))]
        content = {"filenames": [], "batch_label": split, "fine_labels": labels, "coarse_labels": labels, "data": data}
        files[f"cifar-100-python/{split}"] = pickle.dumps(content, 2)
    path = folder / "cifar-100-python.tar.gz"
    path.write_bytes(tar_bytes(files, "w:gz"))
    return path, pixels


def test_cifar100_keeps_every_pixel_and_label(tmp_path: Path) -> None:
    archive, pixels = cifar(tmp_path)
    assert shard("cifar100", archive, tmp_path / "out", "--max-samples-per-shard", "8") == 0
    dm = CIFAR100(root=str(tmp_path / "out"))
    for split, data in pixels.items():
        read = trained_and_validated(dm) if split == "train" else raw(dm, split)
        assert len(read) == len(data)
        got = {}
        for sample in read:
            image = np.asarray(Image.open(io.BytesIO(sample.parts["png"])))
            got[image.transpose(2, 0, 1).tobytes()] = int(sample.parts["cls"])
        assert got == {row.tobytes(): (7 * i) % 100 for i, row in enumerate(data)}
    assert dm.classnames is not None
    assert dm.classnames[:2] == ["fine 0", "fine 1"]
    assert dm.templates is not None
    assert len(dm.templates) == 18


def test_cifar100_is_found_extracted_and_in_a_folder(tmp_path: Path) -> None:
    archive, _ = cifar(tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "extracted", filter="data")
    for i, source in enumerate([tmp_path, tmp_path / "extracted", tmp_path / "extracted" / "cifar-100-python"]):
        shard("cifar100", source, tmp_path / f"out{i}")
    files = [{p.relative_to(o): p.read_bytes() for p in o.rglob("*") if p.is_file()} for o in tmp_path.glob("out*")]
    assert files[0] == files[1] == files[2]


def test_cifar100_runs_no_foreign_code_and_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no cifar-100-python\.tar\.gz \(the official"):
        shard("cifar100", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match=r"--source .*nowhere does not exist"):
        shard("cifar100", tmp_path / "nowhere", tmp_path / "out")
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "hacked").encode() + b"'\ntR."
    archive = tmp_path / "cifar-100-python.tar.gz"
    archive.write_bytes(tar_bytes({f"cifar-100-python/{n}": evil for n in ("meta", "train", "test")}, "w:gz"))
    with pytest.raises(UserError, match="not the official"):
        shard("cifar100", archive, tmp_path / "out")
    assert not (tmp_path / "hacked").exists()
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(UserError, match="damaged"):
        shard("cifar100", archive, tmp_path / "out")


def cifar_pickles(folder: Path, protocol: int = 2, **change: object) -> Path:
    """The extracted archive with something else in `train`, or with `meta` in its place."""
    data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    train = {"data": data, "fine_labels": [1, 2]} | change
    meta = {"fine_label_names": train.pop("names", [f"fine_{i}" for i in range(100)])}
    folder.mkdir(exist_ok=True)
    for name, content in (("train", train), ("test", {"data": data, "fine_labels": [3, 4]}), ("meta", meta)):
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar100_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    shard("cifar100", cifar_pickles(tmp_path / "in", protocol), tmp_path / "out")
    read = raw(CIFAR100(root=str(tmp_path / "out")), "test")
    assert [s.parts["cls"] for s in read] == [b"3", b"4"]
    pixels = [np.asarray(Image.open(io.BytesIO(s.parts["png"]))).transpose(2, 0, 1).ravel() for s in read]
    assert np.array_equal(pixels, np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fine_labels": [1, 1000]}, r"label 1 of 'train' is 1000, but must be 0\.\.99"),
        ({"fine_labels": [-1, 2]}, r"label 0 of 'train' is -1"),
        ({"fine_labels": [1, "2"]}, r"label 1 of 'train' is '2'"),
        ({"fine_labels": [1]}, "2 fine labels"),
        ({"fine_labels": None}, "2 fine labels"),
        ({"data": np.zeros((2, 100), np.uint8)}, r"rows of 3072 bytes, but are \(2, 100\)"),
        ({"data": np.zeros((2, 3072), np.float64)}, "array of 'f8'"),
        ({"data": np.array([{}, {}], object)}, "array of 'O8'"),
        ({"data": "text"}, "are str"),
        ({"names": ["a"]}, "100 names"),
    ],
)
def test_cifar100_that_is_not_cifar100(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        shard("cifar100", cifar_pickles(tmp_path / "in", **change), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, object]:
        return self.call


@pytest.mark.parametrize("name", ["numpy.f2py.diagnose dtype", "numpy.lib ndarray", "numpy.testing dtype", "os system"])
def test_cifar100_takes_exact_names_alone(tmp_path: Path, name: str) -> None:
    source = cifar_pickles(tmp_path / "in")
    module, function = name.split()
    (source / "train").write_bytes(f"c{module}\n{function}\n(S'touch {tmp_path}/ran'\ntR.".encode())
    with pytest.raises(UserError, match=rf"it wants {module}\.{function}, which is no part"):
        shard("cifar100", source, tmp_path / "out")
    (source / "train").write_bytes(pickle.dumps(Calls(codecs.encode, "x", "zip"), 2))
    with pytest.raises(UserError, match=r"it wants "):
        shard("cifar100", source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_pickles_that_claim_gigabytes(tmp_path: Path) -> None:
    source = cifar_pickles(tmp_path / "in")
    huge = struct.pack("<Q", 1 << 40)
    reconstruct = pickle.dumps(np.zeros(0, np.uint8), 2).replace(
        b"K\x00\x85", b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85"
    )
    for data in (b"\x80\x05\x96" + huge, b"\x80\x05\x8e" + huge, b"\x80\x02r\xff\xff\xff\x7f", reconstruct):
        (source / "train").write_bytes(data)
        with pytest.raises(UserError, match="damaged or not the official"):
            shard("cifar100", source, tmp_path / "out")


def test_damaged_pickles_are_one_message(tmp_path: Path) -> None:
    source = cifar_pickles(tmp_path / "in")
    whole, rng = (source / "train").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in [rng.randrange(120), rng.randrange(len(data) - 100, len(data))][: rng.choice([1, 2])]:
            data[at] = rng.randrange(256)
        (source / "train").write_bytes(data)
        try:
            open_cifar100(source)
        except UserError:
            refused += 1
    assert refused > 100


# -- COCO -------------------------------------------------------------------------------------------------------------


def coco(folder: Path, *, zipped: bool) -> Path:
    categories = [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    files: dict[str, bytes] = {}
    for split, first in (("train2017", 100), ("val2017", 500)):
        shown = [{"id": first + i, "file_name": f"{first + i:012d}.jpg"} for i in range(3)]
        boxes = [  # image 0: two bottles cover more than the person; image 1: a toothbrush; image 2: nothing
            {"image_id": first, "category_id": 1, "area": 50.0},
            {"image_id": first, "category_id": 44, "area": 30},
            {"image_id": first, "category_id": 44, "area": 30.5},
            {"image_id": first + 1, "category_id": 90, "area": 1.0},
        ]
        said = [
            {"id": 9, "image_id": first, "caption": "second\n one"},
            {"id": 2, "image_id": first, "caption": "first"},
        ]
        files |= {f"{split}/{i['file_name']}": picture(i["id"] % 200, kind="jpg") for i in shown}  # type: ignore[operator]
        labels = {"images": shown, "annotations": boxes, "categories": categories}
        files[f"annotations/instances_{split}.json"] = json.dumps(labels).encode()
        files[f"annotations/captions_{split}.json"] = json.dumps({"images": shown, "annotations": said}).encode()
    folder.mkdir()
    for name, data in files.items():
        if zipped:
            archive = "annotations_trainval2017.zip" if name.startswith("ann") else name.split("/")[0] + ".zip"
            with zipfile.ZipFile(folder / archive, "a") as z:
                z.writestr(name, data)
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_coco(tmp_path: Path, zipped: bool) -> None:
    source = coco(tmp_path / "source", zipped=zipped)
    shard("coco", source, tmp_path / "out")
    dm = COCO(root=str(tmp_path / "out"), num_workers=0)
    dm.transform = to_tensor
    dm.setup()
    assert dm.classnames == ["person", "bottle", "toothbrush"]
    assert dm.dataset_type == "multilabel"
    batch = next(iter(dm.test_dataloader()))
    assert batch["label"].tolist() == [1, 2, -1]
    assert batch["multi_hot"].tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert batch["captions"] == [["first", "second one"], [], []]
    assert {s.parts["jpg"] for s in trained_and_validated(dm)} == {picture(100 + i, kind="jpg") for i in range(3)}


def test_coco_names_what_is_missing(tmp_path: Path) -> None:
    source = coco(tmp_path / "source", zipped=False)
    (source / "val2017" / "000000000501.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 000000000501\.jpg"):
        shard("coco", source, tmp_path / "out")
    (source / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"no instances_val2017\.json"):
        shard("coco", source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"annotations_trainval2017\.zip"):
        shard("coco", tmp_path / "empty", tmp_path / "out")


# -- ImageNet-100 -----------------------------------------------------------------------------------------------------


def jpeg(i: int) -> bytes:
    return picture(i, kind="jpg")


TRAIN = {
    w: {f"{w}_{i}.JPEG": jpeg(10 * n + i) for i in range(4)} for n, w in enumerate((DOG, TENCH, BONNET, "n02488291"))
}
VAL = [DOG, TENCH, TENCH, "n02488291", BONNET]


def wnid_list(folder: Path) -> str:
    path = folder / "list.txt"
    path.write_text(f"{DOG}\n{TENCH}\n{BONNET}\n")
    return str(path)


def imagenet(folder: Path, form: str) -> Path:
    folder.mkdir()
    flat = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in range(1, 6)}
    if form == "archives":
        inner = {f"{w}.tar": tar_bytes(files) for w, files in TRAIN.items()}
        (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
        (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(flat))
        numbers = {DOG: 1, TENCH: 2, BONNET: 3, "n02488291": 490}
        truth = "".join(f"{numbers[w]}\n" for w in VAL).encode()
        kit = {"data/meta.mat": META_MAT, "data/ILSVRC2012_validation_ground_truth.txt": truth}
        packed = tar_bytes({f"ILSVRC2012_devkit_t12/{k}": v for k, v in kit.items()}, "w:gz")
        (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed)
        return folder
    base = folder / "ILSVRC/Data/CLS-LOC" if form == "kaggle" else folder
    for wnid, files in TRAIN.items():
        (base / "train" / wnid).mkdir(parents=True)
        for name, data in files.items():
            (base / "train" / wnid / name).write_bytes(data)
    for (name, data), wnid in zip(flat.items(), VAL):
        path = base / "val" / name if form == "kaggle" else base / "val" / wnid / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if form == "kaggle":
        rows = "".join(f"{name[:-5]},{wnid} 1 2 3 4 \n" for name, wnid in zip(flat, VAL))
        (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    return folder


@pytest.mark.parametrize("form", ["archives", "folders", "kaggle"])
def test_imagenet100(tmp_path: Path, form: str) -> None:
    source = imagenet(tmp_path / "source", form)
    shard("imagenet100", source, tmp_path / "out", "--class-list", wnid_list(tmp_path))
    dm = ImageNet100(root=str(tmp_path / "out"), class_list=wnid_list(tmp_path))
    expected = {data: label for label, wnid in enumerate(sorted([DOG, TENCH, BONNET])) for data in TRAIN[wnid].values()}
    assert {s.parts["jpg"]: int(s.parts["cls"]) for s in trained_and_validated(dm)} == expected
    truth = {jpeg(101): 1, jpeg(102): 0, jpeg(103): 0, jpeg(105): 2}
    assert {s.parts["jpg"]: int(s.parts["cls"]) for s in raw(dm, "test")} == truth
    assert dm.classnames == ["tench", "Dobermann", "poke bonnet"]
    assert dm.templates is not None
    assert len(dm.templates) == 80
    record = json.loads((tmp_path / "out/train/shards.json").read_text())
    assert record["settings"]["class_list_sha256"] == dm.class_list.sha256


def test_imagenet100_names_what_is_missing(tmp_path: Path) -> None:
    chosen = wnid_list(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no ILSVRC2012_img_train\.tar"):
        shard("imagenet100", tmp_path / "empty", tmp_path / "out", "--class-list", chosen)
    source = imagenet(tmp_path / "source", "archives")
    (source / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz"):
        shard("imagenet100", source, tmp_path / "out", "--class-list", chosen)
    with pytest.raises(UserError, match=r"no image of \d+ classes"):
        shard("imagenet100", source, tmp_path / "out")
    data = (source / "ILSVRC2012_img_train.tar").read_bytes()
    (source / "ILSVRC2012_img_train.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        shard("imagenet100", source, tmp_path / "out", "--class-list", chosen)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("LOC_val_solution.csv", b"\xef\xbb\xbfImageId,PredictionString\nILSVRC2012_val_00000001,\n", r"csv, line 2"),
        ("LOC_val_solution.csv", b"a,b\n1,2\n", r"csv, line 2: expected ImageId"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\nl\xf6we,1\n", r"csv, line 2: byte 0xf6"),
        ("imagenet_2012_validation_synset_labels.txt", b"n02107142\n\nn01440764\n", r"labels\.txt, line 2: a blank"),
        ("imagenet_2012_validation_synset_labels.txt", "n02107142\n".encode("utf-16"), r"labels\.txt is UTF-16"),
    ],
)
def test_label_files_of_imagenet(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    source = imagenet(tmp_path / "source", "archives")
    (source / file).write_bytes(content)
    with pytest.raises(UserError, match=words):
        shard("imagenet100", source, tmp_path / "out", "--class-list", wnid_list(tmp_path))


def test_label_files_with_a_mark_and_windows_lines(tmp_path: Path) -> None:
    source = imagenet(tmp_path / "source", "archives")
    (source / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    labels = "".join(f"{wnid}\r\n" for wnid in VAL)
    (source / "imagenet_2012_validation_synset_labels.txt").write_bytes(b"\xef\xbb\xbf" + labels.encode())
    shard("imagenet100", source, tmp_path / "out", "--class-list", wnid_list(tmp_path))
    dm = ImageNet100(root=str(tmp_path / "out"), class_list=wnid_list(tmp_path))
    assert [int(s.parts["cls"]) for s in raw(dm, "test")] == [1, 0, 0, 2]


def test_a_damaged_meta_mat_is_one_message() -> None:
    rng = random.Random(0)
    unpacked = META_MAT[:128] + zlib.decompress(META_MAT[136:])
    assert read_struct(unpacked, "synsets") == read_struct(META_MAT, "synsets")
    for data in (META_MAT, unpacked):
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(rng.choice([1, 3])):
                damaged[rng.randrange(120, len(data))] = rng.randrange(256)
            with suppress(UserError):
                read_struct(bytes(damaged), "synsets")
    bomb = zlib.compress(bytes(200 << 20), 1)
    with pytest.raises(UserError, match="damaged"):
        read_struct(META_MAT[:128] + struct.pack("<II", 15, len(bomb)) + bomb, "synsets")


# -- own folders ------------------------------------------------------------------------------------------------------


def put(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(i, kind="jpg" if name.endswith("jpg") else "png"))
    return folder


def test_a_folder_of_splits_and_classes(tmp_path: Path) -> None:
    source = put(tmp_path / "s", "train/big_cat/a.jpg", "train/dog/b.PNG", "valid/dog/c.jpg", "train/dog/.hidden.jpg")
    (source / "train" / "dog" / "b.txt").write_text("a dog")
    shard("folder", source, tmp_path / "out", "--shuffle-seed", "-1")
    dm = WebImages(root=str(tmp_path / "out"), num_workers=0)
    assert [(int(s.parts["cls"]), sorted(s.parts)) for s in raw(dm, "train")] == [
        (0, ["cls", "jpg"]),
        (1, ["cls", "png", "txt"]),
    ]
    assert [int(s.parts["cls"]) for s in raw(dm, "val")] == [1]
    assert dm.classnames == ["big cat", "dog"]


def test_a_folder_of_classes_is_mixed_and_split(tmp_path: Path) -> None:
    source = put(tmp_path / "s", *(f"{c}/{i:02d}.png" for c in "ab" for i in range(20)))
    shard("folder", source, tmp_path / "out", "--test-fraction", "0.1")
    dm = WebImages(root=str(tmp_path / "out"))
    labels = [int(s.parts["cls"]) for s in raw(dm, "train")]
    assert sorted(labels) == [0] * 17 + [1] * 17
    assert labels != sorted(labels)
    assert [int(s.parts["cls"]) for s in raw(dm, "val")] == [0, 1]
    assert [int(s.parts["cls"]) for s in raw(dm, "test")] == [0, 0, 1, 1]


def test_plain_images_and_a_limit(tmp_path: Path) -> None:
    shard("folder", put(tmp_path / "s", *(f"{i}.png" for i in range(9))), tmp_path / "out", "--limit", "5")
    dm = WebImages(root=str(tmp_path / "out"))
    assert [sorted(s.parts) for s in raw(dm, "train")] == [["png"]] * 5
    assert dm.classnames is None


def test_folders_that_make_no_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        shard("folder", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="some do not"):
        shard("folder", put(tmp_path / "s", "a/0.png", "1.png"), tmp_path / "out")


def test_the_command_needs_no_torch() -> None:
    code = "import sys, clt_lightning.data.shard as s; assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

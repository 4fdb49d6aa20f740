"""Tars with known contents."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from clt_lightning.data.sets.base import WebImages


def to_tensor(image: Image.Image) -> torch.Tensor:
    """8 x 8, 0..1: a picklable transform."""
    array = np.asarray(image.resize((8, 8)), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def picture(value: int = 0, *, size: int = 8, kind: str = "png") -> bytes:
    """A flat grey image that carries its number in its brightness."""
    out = io.BytesIO()
    Image.new("RGB", (size, size), (value % 256,) * 3).save(out, {"jpg": "JPEG", "webp": "WEBP"}.get(kind, "PNG"))
    return out.getvalue()


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for key, parts in samples:
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def samples(start: int, count: int, *, classes: int | None = 10) -> list[tuple[str, dict[str, bytes]]]:
    made = []
    for i in range(start, start + count):
        parts = {"png": picture(i)}
        if classes is not None:
            parts["cls"] = str(i % classes).encode()
        made.append((f"s{i:07d}", parts))
    return made


def write_split(folder: Path, sizes: Sequence[int], *, classes: int | None = 10, nshards: bool = True) -> Path:
    """Shards of the given sizes in the public layout; keys count through the split."""
    start = 0
    for number, size in enumerate(sizes):
        write_tar(folder / f"{number}.tar", samples(start, size, classes=classes))
        start += size
    if nshards:
        (folder / "nshards.txt").write_text(f"{len(sizes)}\n")
    return folder


def write_root(root: Path, train: Sequence[int] = (), test: Sequence[int] = (), *, classes: int | None = 10) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, sizes in (("train", train), ("test", test)):
        if sizes:
            write_split(root / name, sizes, classes=classes)
    if classes is not None:
        (root / "classnames.txt").write_text("".join(f"class {i}\n" for i in range(classes)))
        (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return root


def images(root: Path | None = None, **options: object) -> WebImages:
    """A `WebImages` with small defaults and a transform."""
    from clt_lightning.data.sets.base import WebImages  # spawned workers import this file and need no lightning

    dm = WebImages(**({"root": None if root is None else str(root), "batch_size": 4, "num_workers": 0} | options))  # type: ignore[arg-type]
    dm.transform = to_tensor
    return dm


def numbers(batches: Iterable[Mapping[str, object]]) -> list[int]:
    """The samples' numbers, from their keys."""
    return [int(str(key).rpartition("/s")[2]) for batch in batches for key in batch["key"]]  # type: ignore[attr-defined]

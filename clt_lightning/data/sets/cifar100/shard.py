"""CIFAR-100's official python archive."""

from __future__ import annotations

import io
import tarfile
import zlib
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from PIL import Image

from clt_lightning.core.errors import UserError
from clt_lightning.data.lists import lines
from clt_lightning.data.sets.cifar100.arrays import load
from clt_lightning.data.sharding.sharder import Sharder, SourceSet
from clt_lightning.data.sharding.sources import first_existing, needed
from clt_lightning.data.sharding.writer import Item

_ARCHIVE = "cifar-100-python.tar.gz"
_SPLITS = ("train", "test")
_CLASSES, _PIXELS = 100, 3072


def open_cifar100(source: Path) -> SourceSet:
    """The 50,000 and 10,000 images as PNG (lossless) with their fine labels.

    Args:
        source: `cifar-100-python.tar.gz`, its extracted folder, or a folder that holds one of them.

    Raises:
        UserError: it is not there, or not the official archive.
    """
    pickles = _pickles(source)
    names = pickles["meta"].get("fine_label_names")
    if not isinstance(names, list) or len(names) != _CLASSES or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: 'meta' should hold {_CLASSES} names (fine_label_names): is it CIFAR-100?")
    splits = {}
    for split in _SPLITS:
        data, labels = pickles[split].get("data"), pickles[split].get("fine_labels")
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS or not len(data):
            found = data.shape if isinstance(data, np.ndarray) else type(data).__name__
            raise UserError(f"{source}: the data of {split!r} should be rows of {_PIXELS} bytes, but are {found}")
        if data.dtype != np.uint8:
            raise UserError(f"{source}: the data of {split!r} should be bytes (uint8), but are {data.dtype}")
        if not isinstance(labels, list) or len(labels) != len(data):
            raise UserError(f"{source}: {split!r} should hold {len(data)} fine labels, one per image")
        wrong = next((i for i, label in enumerate(labels) if type(label) is not int or not 0 <= label < _CLASSES), None)
        if wrong is not None:
            raise UserError(f"{source}: label {wrong} of {split!r} is {labels[wrong]!r}, but must be 0..{_CLASSES - 1}")
        splits[split] = [
            Item(f"{split}-{i}", partial(_parts, data[i], labels[i]), group=str(labels[i])) for i in range(len(data))
        ]
    names = [name.replace("_", " ") for name in names]
    texts = {"classnames.txt": names, "zeroshot_classification_templates.txt": lines("templates_cifar18")}
    return SourceSet(splits, texts, {"image": "png"})


def _parts(row: np.ndarray, label: int) -> dict[str, bytes]:
    out = io.BytesIO()
    Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(out, "PNG", compress_level=6)
    return {"png": out.getvalue(), "cls": str(label).encode()}


def _pickles(source: Path) -> dict[str, dict[str, Any]]:
    wanted = ("meta", *_SPLITS)
    folder = next((f for f in (source, source / "cifar-100-python") if all((f / n).is_file() for n in wanted)), None)
    try:
        if folder is not None:
            return {name: load((folder / name).read_bytes()) for name in wanted}
        archive = source if source.is_file() else first_existing(source, [_ARCHIVE])
        archive = needed(
            archive,
            source,
            f"{_ARCHIVE} (the official 'CIFAR-100 python version', 161 MB, from https://www.cs.toronto.edu/~kriz/cifar.html)",
        )
        with tarfile.open(archive) as tar:
            found = {Path(m.name).name: tar.extractfile(m) for m in tar if m.isfile() and Path(m.name).name in wanted}
            return {name: load(file.read()) for name in wanted if (file := found[name]) is not None}
    except (tarfile.TarError, EOFError, OSError, KeyError, zlib.error, UnpicklingError) as error:
        raise UserError(f"{source} is damaged or not the official {_ARCHIVE} ({error}): download it again") from error


SHARDER = Sharder(
    "cifar100",
    "CIFAR-100: cifar-100-python.tar.gz, or a folder that holds it or its extracted files",
    lambda source, _: open_cifar100(source),
)

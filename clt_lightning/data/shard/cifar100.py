"""CIFAR-100's official python archive."""

from __future__ import annotations

import io
import pickle
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clt_lightning.core.errors import UserError
from clt_lightning.data.lists import lines
from clt_lightning.data.shard.sources import SourceSet, first_existing, needed
from clt_lightning.data.shard.writer import Item

_ARCHIVE = "cifar-100-python.tar.gz"
_SPLITS = ("train", "test")


def open_cifar100(source: Path) -> SourceSet:
    """The 50,000 and 10,000 images as PNG (lossless) with their fine labels.

    Args:
        source: `cifar-100-python.tar.gz`, its extracted folder, or a folder that holds one of them.

    Raises:
        UserError: it is not there, or not the official archive.
    """
    pickles = _pickles(source)
    names = [n.replace("_", " ") for n in pickles["meta"]["fine_label_names"]]
    splits = {}
    for split in _SPLITS:
        data, labels = np.asarray(pickles[split]["data"]), pickles[split]["fine_labels"]
        if data.ndim != 2 or data.shape[1] != 3072 or len(labels) != len(data) or data.dtype != np.uint8:
            raise UserError(
                f"{source}: {split!r} should hold uint8 rows of 3072 and a fine label each, but is {data.shape}"
            )
        splits[split] = [
            Item(f"{split}-{i}", partial(_parts, data[i], int(labels[i])), group=str(labels[i]))
            for i in range(len(data))
        ]
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
            return {name: _load((folder / name).read_bytes()) for name in wanted}
        archive = source if source.is_file() else first_existing(source, [_ARCHIVE])
        archive = needed(
            archive,
            source,
            f"{_ARCHIVE} (the official 'CIFAR-100 python version', 161 MB, from https://www.cs.toronto.edu/~kriz/cifar.html)",
        )
        with tarfile.open(archive) as tar:
            found = {Path(m.name).name: tar.extractfile(m) for m in tar if m.isfile() and Path(m.name).name in wanted}
            return {name: _load(file.read()) for name in wanted if (file := found[name]) is not None}
    except (tarfile.TarError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{source} is damaged or not the official {_ARCHIVE} ({error}): download it again") from error


class _OnlyArrays(pickle.Unpickler):
    """Pickles can run any code: only what builds NumPy arrays is let through."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode") or (
            module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "_frombuffer")
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no part of CIFAR-100")


def _load(data: bytes) -> dict[str, Any]:
    return _OnlyArrays(io.BytesIO(data), encoding="latin1").load()

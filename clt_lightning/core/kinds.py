"""What a file is that should hold weights: told from its bytes, never from its ending, and nothing in it is run."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAFETENSORS, TORCH, TORCHSCRIPT, PICKLE = "safetensors", "torch", "torchscript", "pickle"

_HEAD = 1 << 12
#: The number that torch.save began its files with before it wrote zips
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_AGAIN = "fetch or copy it again"
_UNPACK = "unpack it, and give the file of weights inside"
_OTHER_FRAMEWORK = "weights as torch or safetensors files are needed"
#: First bytes, what such a file is, what to do
_SIGNATURES = (
    (b"\x1f\x8b", "is compressed with gzip", _UNPACK),
    (b"BZh", "is compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "is compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "is a 7z archive", _UNPACK),
    (b"Rar!", "is a RAR archive", _UNPACK),
    (b"\x89HDF", "is an HDF5 file, as Keras writes weights", _OTHER_FRAMEWORK),
    (b"GGUF", "is a GGUF file, as llama.cpp reads them", _OTHER_FRAMEWORK),
    (b"\x93NUMPY", "is a single array of numpy's", _OTHER_FRAMEWORK),
    (b"\x89PNG", "is a picture", _OTHER_FRAMEWORK),
    (b"\xff\xd8\xff", "is a picture", _OTHER_FRAMEWORK),
)


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        name: `safetensors`, `torch` (of `torch.save`), `torchscript`, `pickle`, or `other` for all that holds no
            weights that torch reads.
        words: after the file's name, a sentence: "is empty", "is a git-lfs pointer ...".
        remedy: what to do, where it is `other`.
    """

    name: str
    words: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.words}: {self.remedy}" if self.remedy else self.words


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Tells what a file is. Reads its beginning and, of a zip, the table of contents.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Kind("other", "is empty (0 bytes)", _AGAIN)
    if head.startswith(b"version https://git-lfs"):
        return _pointer(head)
    if head.startswith(b"PK"):
        return _zip(path)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= 100_000_000:  # the format's own limit for its header
        return Kind(SAFETENSORS, "is a safetensors file")
    if _LEGACY in head[:16]:
        return Kind(TORCH, "is a file of torch.save, in the layout before torch 1.6")
    if re.match(rb"\x80[\x00-\x05]", head):
        return Kind(PICKLE, "is a pickle that torch.save did not write")
    for begin, words, remedy in _SIGNATURES:
        if head.startswith(begin):
            return Kind("other", words, remedy)
    if head[257:262] == b"ustar":
        return Kind("other", "is a tar archive", _UNPACK)
    if head[:1] == b"\x08" and re.search(rb"pytorch|onnx", head[:64]):
        return Kind("other", "is an ONNX model", _OTHER_FRAMEWORK)
    if not head.strip(b"\0"):
        return Kind("other", f"begins with {len(head):,} bytes of zeros: its download or copy never ended", _AGAIN)
    return _text(head) or Kind("other", f"holds no weights that torch can read ({size:,} bytes)", _OTHER_FRAMEWORK)


def _pointer(head: bytes) -> Kind:
    told = re.search(rb"^size (\d+)", head, re.MULTILINE)
    stands_for = f" to {megabytes(int(told[1]))}" if told else ""
    return Kind("other", f"is a git-lfs pointer{stands_for}, not the weights themselves", "run `git lfs pull`")


def _zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        return Kind("other", f"is a file of torch.save or another zip, cut off or damaged ({error})", _AGAIN)
    last = {name.rsplit("/", 1)[-1] for name in names}
    if {"data.pkl", "constants.pkl"} <= last:
        return Kind(TORCHSCRIPT, "is a TorchScript archive")
    if "data.pkl" in last:
        return Kind(TORCH, "is a file of torch.save")
    if "model.json" in last:
        return Kind("other", "is a TorchScript archive of torch 1.3 or older", "save it with a newer torch")
    if names and all(name.endswith(".npy") for name in names):
        return Kind("other", "holds arrays of numpy's (.npz), as JAX models are shared", _OTHER_FRAMEWORK)
    return Kind("other", f"is a zip archive of {len(names)} files", _UNPACK)


def _text(head: bytes) -> Kind | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return Kind("other", "is a web page, an error page perhaps that was saved under this name", _AGAIN)
    if b"\0" in head:
        return None
    try:
        text = head[: head.rfind(b"\n")].decode("utf-8") if b"\n" in head else head.decode("utf-8")
    except UnicodeDecodeError:
        return None
    first = text.strip().split("\n", 1)[0][:60]
    return Kind("other", f"is a text that begins with {first!r}", "give the file with the weights")


def refused_objects(path: str | os.PathLike[str], error: BaseException) -> str:
    """What in a file of torch.save `weights_only=True` has refused, and why, after the file's name: "holds ...".

    Args:
        path: the file.
        error: what `torch.load` raised.
    """
    # in the layout before torch 1.6 the first one is known, which torch has named
    names = foreign_objects(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
    if not names:
        return f"is a damaged pickle, or one of other objects than tensors ({_torch_says(error)})"
    return in_words(names)


def foreign_objects(path: str | os.PathLike[str]) -> list[str]:
    """Classes and functions that a file of torch.save names and `weights_only=True` will refuse; nothing is run.

    Empty also for a file in another layout, or a damaged one.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return list(get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, OSError, pickle.UnpicklingError, KeyError, IndexError):
        return []


def in_words(names: Sequence[str]) -> str:
    """What `foreign_objects` found, after the file's name: "holds ...: to read that is to run code"."""
    named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if all(name.split(".")[0] == "numpy" for name in names):
        what = f"holds a numpy value among the tensors ({named})"
    elif any(name.startswith("torch.nn.modules") for name in names):
        what = f"holds a pickled module ({named}), not its tensors alone"
    else:
        what = f"holds Python objects beside tensors ({named})"
    return f"{what}: to read that is to run code, which is not done"


def _torch_says(error: BaseException) -> str:
    told = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return told[1].strip() if told else first_line(error)


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's text, cut to `limit` characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= limit else lines[0][:limit] + " ..."


def megabytes(size: int) -> str:
    """A number of bytes in words: `605 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            number = size / scale
            return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{size} bytes"

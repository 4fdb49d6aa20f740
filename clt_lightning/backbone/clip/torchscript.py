"""The tensors of a TorchScript archive, the form in which OpenAI published CLIP; none of its code is run.

`torch.jit.load` is no way to read a file that a stranger wrote: it compiles the archive's code and calls each
`__setstate__` in it, and TorchScript has operators that write files. An archive is a zip: `data.pkl` describes the
objects, and the tensors' bytes lie beside it as they are. The pickle is read with an unpickler that knows a handful of
names and instructions; objects of the archive's own classes become dicts of their attributes, and anything else ends
the reading.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from clt_lightning.core.kinds import first_line

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
#: Far beyond any model; objects that hold themselves would be walked for ever
_MOST_ATTRIBUTES = 1_000_000
#: Bytes of a file of code; it is compressed, and could grow without end
_MOST_CODE = 4_000_000
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")


class DamagedArchive(Exception):  # noqa: N818  (its reader makes a UserError of it, which names the file)
    """The archive is cut off, overwritten, or not what TorchScript writes."""


#: What TorchScript writes
_INSTRUCTIONS = """
    PROTO STOP GLOBAL NEWOBJ REDUCE BUILD MARK BINPUT LONG_BINPUT BINGET LONG_BINGET BINPERSID NONE NEWTRUE NEWFALSE
    BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS
    EMPTY_DICT SETITEM SETITEMS
"""


def _check_instructions(data: bytes) -> None:
    """Refuses a pickle with instructions that no archive has, or with numbers for which memory would be taken."""
    known = set(_INSTRUCTIONS.split())
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in known:
            raise pickle.UnpicklingError(f"it has the instruction {instruction.name}, which no archive has")
        if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it has a place {argument} in {len(data)} bytes")


class _Object:
    """An object of one of the archive's own classes: its attributes, and nothing that it could do."""

    attributes: Mapping[Any, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Function:
    """What a pickle may call. An object of slots alone, so that a pickle cannot change what others will call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str, meta: bool) -> None:
        data = archive.read(f"{root}data.pkl")  # whole: its checksum is looked at
        _check_instructions(data)
        super().__init__(io.BytesIO(data))
        self._archive, self._root, self._meta = archive, root, meta
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Object
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Function(_rebuild)
        if module == "torch" and name in _DTYPES:
            return name  # stands in the tuples that persistent_load gets
        if (module, name) == ("collections", "OrderedDict"):
            return _Function(OrderedDict)
        if module == "torch.jit._pickle" and name in _LISTS:
            return _Function(_first)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no model needs")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage, key, _device, numel = pid[:5]
        if kind != "storage" or storage not in _DTYPES:
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        dtype, numel = _DTYPES[storage], int(numel)
        if self._meta:
            return torch.empty(numel, dtype=dtype, device="meta")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if len(data) != numel * dtype.itemsize:
                raise pickle.UnpicklingError(f"tensor {key} has {len(data)} bytes for {numel} numbers of {dtype}")
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), int(offset))


def _first(value: Any, *_: Any) -> Any:
    return value


def read_tensors(path: Path, meta: bool = False) -> dict[str, Tensor]:
    """All tensors among the attributes of an archive's modules, by their dotted names, as `state_dict` has them.

    Args:
        path: a TorchScript archive (`core.kinds.TORCHSCRIPT`).
        meta: tensors without contents, for their shapes.

    Raises:
        DamagedArchive: it is damaged, or its description names what no model needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            tensors = [info for info in archive.infolist() if info.filename.startswith(f"{root}data")]
            if any(info.compress_type != zipfile.ZIP_STORED for info in tensors):
                raise DamagedArchive("its tensors are compressed, which TorchScript's never are")
            if sum(info.file_size for info in tensors) > path.stat().st_size:
                raise DamagedArchive("its tensors lie over each other")
            if sys.byteorder != _byteorder(archive, root):
                raise DamagedArchive("its numbers are of a machine with the other byte order")
            top = _Unpickler(archive, root, meta).load()
            return dict(_walk(top))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DamagedArchive(f"it is cut off or overwritten: {error}") from error
    except DamagedArchive:
        raise
    except Exception as error:  # a damaged pickle can end in any of them
        raise DamagedArchive(f"its description cannot be read: {first_line(error)}") from error


def computes_quick_gelu(path: Path) -> bool:
    """Whether the archived model computes QuickGELU, as its code says: OpenAI's do, a traced open_clip may not.

    Raises:
        DamagedArchive: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = [archive.open(name) for name in archive.namelist() if name.endswith(".py")]
            code = [file.read(_MOST_CODE).decode("utf-8", "replace") for file in files]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DamagedArchive(f"it is cut off or overwritten: {error}") from error
    sigmoid, gelu = (any(re.search(rf"\b{name}\(", text) for text in code) for name in ("sigmoid", "gelu"))
    return sigmoid or not gelu


def _root(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(names) != 1:
        raise DamagedArchive(f"it has {len(names)} files data.pkl")
    return names[0].removesuffix("data.pkl")


def _byteorder(archive: zipfile.ZipFile, root: str) -> str:
    name = f"{root}byteorder"
    return archive.read(name).decode("ascii", "replace").strip() if name in archive.namelist() else "little"


def _walk(top: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted name, a shared one under each of its names, as in a state dict."""
    stack: list[tuple[str, Any]] = [("", top)]
    for _ in range(_MOST_ATTRIBUTES):
        if not stack:
            return
        prefix, value = stack.pop()
        if isinstance(value, Tensor):
            yield prefix, value.detach()
        elif isinstance(value, _Object):
            stack.extend((f"{prefix}.{name}" if prefix else str(name), part) for name, part in value.attributes.items())
    raise DamagedArchive("its modules hold each other without end")

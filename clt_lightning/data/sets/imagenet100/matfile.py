"""Just enough of MATLAB's level-5 format to read the devkit's `meta.mat`: one struct array of numbers and strings.

Source: "MAT-File Format", The MathWorks, sections on level 5. SciPy would be a large dependency for this one file.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from clt_lightning.core.errors import UserError

_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_MAX_BYTES = 1 << 26  # the devkit's has 0.4 MB
_FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def read_struct(data: bytes, variable: str) -> list[dict[str, Any]]:
    """The elements of a struct array, fields by name: strings as `str`, 1 x 1 arrays as numbers, others as lists.

    Raises:
        UserError: the file is not of level 5, or has no such struct array.
    """
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise UserError("meta.mat is not a MATLAB level-5 file: is the devkit complete?")
    order = "<" if data[126:128] == b"IM" else ">"
    try:
        for kind, body in _elements(data[128:], order):
            if kind == _COMPRESSED:
                kind, body = next(_elements(_unpacked(body), order))
            if kind == _MATRIX:
                name, value = _matrix(body, order)
                if name == variable and isinstance(value, list):
                    return value
    except (struct.error, zlib.error, StopIteration, LookupError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"meta.mat is damaged ({error!r}): download the devkit again") from error
    raise UserError(f"meta.mat has no struct array {variable!r}: is this the devkit of ILSVRC2012?")


def _unpacked(body: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(body, _MAX_BYTES)
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise ValueError("compressed data that are cut, or more than 64 MB")
    return data


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # small format: the size sits in the type's upper half, the data in the tag
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size
        if kind != _COMPRESSED:
            at += -size % 8


def _matrix(body: bytes, order: str) -> tuple[str, Any]:
    parts = _elements(body, order)
    if not body:
        return "", []
    matrix_class = struct.unpack_from(order + "I", next(parts)[1])[0] & 0xFF
    dims = _numbers(*next(parts), order)
    name = next(parts)[1].decode("latin-1")
    if matrix_class == _STRUCT:
        width = int(_numbers(*next(parts), order)[0])
        raw = next(parts)[1]
        fields = [raw[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(raw), width)]
        count = math.prod(int(d) for d in dims)
        return name, [{f: _matrix(next(parts)[1], order)[1] for f in fields} for _ in range(count)]
    kind, data = next(parts, (2, b""))
    if matrix_class == _CHAR:
        codec = _TEXT[kind]
        if codec in ("utf-16", "utf-32"):
            codec += "-le" if order == "<" else "-be"
        return name, data.decode(codec)
    values = _numbers(kind, data, order) if kind in _FORMATS else []
    return name, values[0] if len(values) == 1 else values


def _numbers(kind: int, data: bytes, order: str) -> list[Any]:
    code = _FORMATS[kind]
    return list(struct.unpack(f"{order}{len(data) // struct.calcsize(code)}{code}", data))

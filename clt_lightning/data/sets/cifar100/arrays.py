"""Pickles of plain values and arrays of bytes, as CIFAR's archives hold: nothing that they name is run."""

from __future__ import annotations

import io
import math
import pickle
import struct
from typing import Any, ClassVar

import numpy as np

_KINDS = {"u1": np.dtype(np.uint8), "uint8": np.dtype(np.uint8)}


def load(data: bytes) -> dict[str, Any]:
    """The table in a pickle: texts, numbers, lists and uint8 arrays.

    Raises:
        pickle.UnpicklingError: it is damaged, no table, or names anything else.
    """
    try:
        # the one in C takes memory for the numbers in a damaged pickle
        found = _Reader(io.BytesIO(data), encoding="latin1").load()
        return {key: value.array() if isinstance(value, _Array) else value for key, value in found.items()}
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle trips over anything
        raise pickle.UnpicklingError(f"damaged: {type(error).__name__}: {error}") from error


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: bytes have none."""


class _Array:
    """Stands for `numpy.ndarray`; its bytes must be there before it becomes one."""

    def __init__(self, *_: Any) -> None:
        self._state: tuple[Any, Any, Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self._state = (shape, dtype, fortran, content)

    def array(self) -> np.ndarray:
        if self._state is None:
            raise pickle.UnpicklingError("an array without content")
        shape, dtype, fortran, content = self._state
        if not isinstance(dtype, _Dtype) or dtype.name not in _KINDS:
            raise pickle.UnpicklingError(f"an array of {getattr(dtype, 'name', dtype)!r} in place of bytes")
        if isinstance(content, str):  # as Python 2 wrote bytes
            content = content.encode("latin1")
        if not isinstance(content, bytes | bytearray):
            raise pickle.UnpicklingError(f"an array of which the content is {type(content).__name__}")
        if math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes")
        return np.frombuffer(content, _KINDS[dtype.name]).reshape(shape, order="F" if fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: str) -> _Array:
    """Stands for what NumPy writes from protocol 5 on."""
    made = _Array()
    made.__setstate__((1, shape, dtype, order == "F", content))
    return made


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, by which Python 3 writes bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants the codec {encoding!r}")
    return text.encode(encoding)


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no part of CIFAR-100") from None

    def load_bytearray8(self: Any) -> None:
        """As in `pickle`, which takes memory for as many bytes as are claimed."""
        (size,) = struct.unpack("<Q", self.read(8))
        data = bytearray(self.read(size))
        if len(data) != size:
            raise pickle.UnpicklingError(f"{len(data)} bytes in place of {size}")
        self.append(data)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

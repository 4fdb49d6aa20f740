"""Arrays as text: columns of numbers, and codes of many patch maps: only what is active, in 16 bits."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Largest step between a code and what the page draws, as a share of the feature's largest code
RESOLUTION = 0.5 / 65535
_SIZES = {"b": "i1", "h": "i2", "i": "i4", "f": "f4"}


def pack_column(values: NDArray[Any]) -> str:
    """A column of numbers as `CLT.column` of the page's scripts reads it: a letter for the type, then base64.

    Whole numbers keep their size (`b` int8, `h` int16, `i` int32), others become float32 (`f`); NaN stays NaN.
    """
    kind = {"int8": "b", "int16": "h"}.get(values.dtype.name, "f" if values.dtype.kind == "f" else "i")
    return kind + _text(np.ascontiguousarray(values, dtype=f"<{_SIZES[kind]}"))


def unpack_column(text: str) -> NDArray[Any]:
    """What `pack_column` packed, for tests and for readers in Python."""
    return np.frombuffer(base64.b64decode(text[1:]), dtype=f"<{_SIZES[text[0]]}")


def pack_shares(values: NDArray[Any]) -> dict[str, Any]:
    """Non-negative numbers in 8 bits as `CLT.shares` reads them: `{"top": what 255 stands for, "values": base64}`."""
    top = float(np.max(values, initial=0.0))
    steps = np.rint(np.asarray(values, np.float64) / (top or 1.0) * 255).astype("u1")
    return {"top": float(f"{top:.4g}"), "values": _text(steps)}


def pack_maps(maps: NDArray[np.floating], peaks: NDArray[np.floating]) -> dict[str, Any]:
    """Packs maps; `unpackMaps` of the page's scripts reads them.

    Args:
        maps: `(n, positions)` codes.
        peaks: `(n,)` what 65535 stands for: at least each map's largest |code|.

    Returns:
        `counts`, `positions`, `values` and, if a code is negative, `negative`: base64 of little-endian arrays.
    """
    assert maps.ndim == 2
    assert peaks.shape == maps.shape[:1]
    assert maps.shape[1] <= 65536
    row, position = np.nonzero(maps)
    codes = maps[row, position].astype(np.float64)
    scale = np.where(peaks > 0, peaks, 1.0).astype(np.float64)[row]
    # what is active never becomes zero
    values = np.clip(np.rint(np.abs(codes) / scale * 65535), 1, 65535).astype("<u2")
    packed = {
        "counts": _text(np.bincount(row, minlength=len(maps)).astype("<u2")),
        "positions": _text(position.astype("<u2")),
        "values": _text(values),
    }
    if (codes < 0).any():
        packed["negative"] = _text((codes < 0).astype(np.uint8))
    return packed


def unpack_maps(packed: dict[str, Any], peaks: NDArray[np.floating], positions: int) -> NDArray[np.float64]:
    """The page's reading of `pack_maps`, for tests and for readers in Python."""

    def array(key: str, dtype: str) -> NDArray[Any]:
        return np.frombuffer(base64.b64decode(packed[key]), dtype=dtype)

    counts = array("counts", "<u2").astype(np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    codes = array("values", "<u2") / 65535 * np.asarray(peaks, np.float64)[row]
    if "negative" in packed:
        codes = np.where(array("negative", "u1") > 0, -codes, codes)
    maps = np.zeros((len(counts), positions))
    maps[row, array("positions", "<u2").astype(np.int64)] = codes
    return maps


def pack_numbers(values: NDArray[np.floating]) -> dict[str, Any]:
    """Numbers as 16-bit shares of the largest; NaN stays. `CLT.unpackNumbers` reads them.

    Args:
        values: of any shape.

    Returns:
        `peak`: what 32767 stands for; `values`: base64 of little-endian int16, -32768 for NaN.
    """
    known = np.abs(values[np.isfinite(values)])
    peak = float(known.max(initial=0.0)) or 1.0
    shares = np.where(np.isfinite(values), np.rint(np.nan_to_num(values) / peak * 32767), -32768)
    return {"peak": peak, "values": _text(shares.astype("<i2"))}


def unpack_numbers(packed: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The page's reading of `pack_numbers`."""
    shares = np.frombuffer(base64.b64decode(packed["values"]), dtype="<i2").astype(np.float64)
    return np.where(shares == -32768, np.nan, shares / 32767 * packed["peak"]).reshape(shape)


def _text(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")

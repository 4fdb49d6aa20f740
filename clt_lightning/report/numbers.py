"""Numbers for JSON: few digits, no NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def significant(values: ArrayLike, digits: int = 5) -> NDArray[np.float64]:
    """Rounds to significant digits, whatever the magnitude; NaN and infinities stay."""
    array = np.asarray(values, dtype=np.float64)
    with np.errstate(all="ignore"):
        magnitude = np.floor(np.log10(np.abs(array)))
        places = np.where(np.isfinite(magnitude), digits - 1 - magnitude, 0.0)
        # two factors: one alone overflows for very small numbers
        half = np.floor(places / 2)
        up = 10.0**half, 10.0 ** (places - half)
        rounded = np.rint(array * up[0] * up[1]) / up[0] / up[1]
    return np.where(np.isfinite(array) & np.isfinite(rounded), rounded, array)


def to_list(values: ArrayLike, digits: int = 5) -> list[Any]:
    """An array as nested lists for JSON: floats rounded, NaN and infinities as None."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    return _without_nan([float(f"{v:.{digits}g}") for v in array.ravel().tolist()], array.shape)


def _without_nan(flat: list[float], shape: tuple[int, ...]) -> list[Any]:
    items: list[Any] = [v if math.isfinite(v) else None for v in flat]
    for size in reversed(shape[1:]):
        items = [items[i : i + size] for i in range(0, len(items), size)] if size else [[] for _ in range(shape[0])]
    return items

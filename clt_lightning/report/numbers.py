"""Numbers for JSON: few digits, no NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def to_list(values: ArrayLike, digits: int = 5) -> list[Any]:
    """An array as nested lists for JSON: floats rounded, NaN and infinities as None."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        result: list[Any] = array.tolist()
        return result
    return _without_nan([float(f"{v:.{digits}g}") for v in array.ravel().tolist()], array.shape)


def _without_nan(flat: list[float], shape: tuple[int, ...]) -> list[Any]:
    items: list[Any] = [v if math.isfinite(v) else None for v in flat]
    for size in reversed(shape[1:]):
        items = [items[i : i + size] for i in range(0, len(items), size)] if size else [[] for _ in range(shape[0])]
    return items


def interval(value: dict[str, Any] | None) -> list[Any]:
    """An interval of results.json as three cells of a table: value, low, high."""
    return [None] * 3 if value is None else [value["value"], value["low"], value["high"]]

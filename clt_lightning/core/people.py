"""Numbers as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`0.4 s`, `45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def count(number: float) -> str:
    """`950`, `12.3 k`, `4.56 M`, `7.89 G`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:  # 999,950 is 1 M, not 1e+03 k
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes: `1.2 GB`, `345 MB`."""
    for unit, letters in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g} {letters}"
    return f"{number:.0f} B"

"""The integer in a sample's `cls`."""

from __future__ import annotations

import re

import numpy as np

NO_LABEL = -1
"""What `cls` says of a sample without a class."""

MISSING = int(np.iinfo(np.int64).min)
"""In an index: the sample has no `cls`."""

UNREADABLE = MISSING + 1
"""In an index: its `cls` holds no integer."""

_INTEGER = re.compile(rb"[+-]?[0-9]{1,40}")
_BOM = b"\xef\xbb\xbf"


def parse_label(content: bytes) -> int | None:
    """The integer; None where there is none. A byte-order mark and blanks around it do not matter."""
    text = content.removeprefix(_BOM).strip()
    return int(text) if _INTEGER.fullmatch(text) else None


def indexed_label(content: bytes) -> int:
    """As it is kept in an index: 64 bits, `UNREADABLE` where there is none."""
    label = parse_label(content)
    return UNREADABLE if label is None else max(min(label, 2**63 - 1), -(2**62))

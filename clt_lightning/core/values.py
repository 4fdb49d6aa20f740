"""Nested tables as rows."""

from __future__ import annotations

from typing import Any


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A nested value as rows `a.b.c`, text; what is empty or None is left out."""
    if value is None or value == {} or value == []:
        return []
    if isinstance(value, dict):
        return [row for key, part in value.items() for row in flat(part, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        value = ", ".join(str(part) for part in value)
    return [(name, str(value))]

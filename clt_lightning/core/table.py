"""Tables in plain text that fit the terminal: too wide, they are cut between columns and go on below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its head.
        cells: one a row.
        least: characters that it takes at least, with the space in front of it, where there is room.
        group: a head over neighbouring columns; they are cut apart only where they do not fit together.
        left: whether it is set to the left.
    """

    title: str
    cells: Sequence[str]
    least: int = 0
    group: str = ""
    left: bool = False

    def width(self, tight: bool = False) -> int:
        """Characters that it takes, with the space in front of it."""
        needed = 1 + max(map(len, (self.title, *self.cells)))
        return needed if tight else max(self.least, needed)


def lay_out(labels: Column, columns: Sequence[Column], width: int | None = None) -> list[str]:
    """The lines of a table.

    Args:
        labels: the first column; it is repeated where the table is cut, and shortened where it takes too much.
        columns: the others.
        width: characters that a line may have; None: any number.

    Returns:
        Head and rows, without spaces at the ends of lines; blocks of a table that was cut have an empty line between
        them.
    """
    label_width = max(labels.least, max(map(len, (labels.title, *labels.cells))))
    if width is not None:
        needed = [column.width(tight=True) for column in columns]
        room = max(width - sum(needed), width // 2)  # names give way first, but not all of the line
        label_width = max(1, min(label_width, room, max(width - max(needed, default=0), 8)))

    def total(part: Sequence[Column], tight: bool) -> int:
        return label_width + sum(column.width(tight) for column in part)

    tight = width is not None and total(columns, False) > width
    if width is not None and total(columns, True) > width:  # it is cut anyway: then with room between the columns
        tight = any(total([column], False) > width for column in columns)
    blocks: list[list[Column]] = [[]]
    for _, members in groupby(columns, key=lambda column: column.group):
        group = list(members)
        together = width is None or total(group, tight) <= width
        for part in [group] if together else [[column] for column in group]:
            if blocks[-1] and width is not None and total(blocks[-1] + part, tight) > width:
                blocks.append([])
            blocks[-1] += part
    lines: list[str] = []
    for block in blocks:
        lines += [""] * bool(lines) + _block(labels, label_width, block, tight)
    return lines


def _block(labels: Column, label_width: int, block: Sequence[Column], tight: bool) -> list[str]:
    def row(label: str, cells: Sequence[str]) -> str:
        if len(label) > label_width:
            label = label[: max(1, label_width - 2)] + ".."[: label_width - 1]
        text = label.ljust(label_width) if labels.left else label.rjust(label_width)
        for column, cell in zip(block, cells):
            size = column.width(tight)
            text += " " + cell.ljust(size - 1) if column.left else cell.rjust(size)
        return text.rstrip()

    lines = _group_heads(label_width, block, tight)
    lines.append(row(labels.title, [column.title for column in block]))
    lines += [row(label, cells) for label, *cells in zip(labels.cells, *(column.cells for column in block))]
    return lines


def _group_heads(label_width: int, block: Sequence[Column], tight: bool) -> list[str]:
    """The names over columns; those that are longer than their columns go over several lines."""
    heads: list[tuple[int, list[str]]] = []
    for name, members in groupby(block, key=lambda column: column.group):
        size = sum(column.width(tight) for column in members)
        heads.append((size, wrap(name, size - 2) if size > 2 else []))
    lines = []
    most = max((len(names) for _, names in heads), default=0)
    for line in range(most):
        head = " " * label_width
        for size, names in heads:
            # the last line of each name stands just over its columns
            at = line - (most - len(names))
            name = names[at] if at >= 0 else ""
            title = f" {name} " if len(name) + 4 <= size else name
            head += f" {title:-^{size - 2}} " if name else " " * size
        lines.append(head.rstrip())
    return lines

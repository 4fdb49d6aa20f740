"""A terminal for tests: runs a command on a pseudo-terminal and tells what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path


class Screen:
    """What a terminal of so many columns shows after all that was written to it; it never scrolls anything away.

    Attributes:
        lines: what stands on the lines, from the top.
        wrapped: numbers of lines that go on in the next one, since they did not fit.
        seen: everything that stood on a line when the cursor left it by `\\n`, or when it was erased or written over.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.cells: list[list[str]] = [[]]
        self.row = self.column = 0
        self.wrapped: set[int] = set()
        self.seen: list[str] = []

    @property
    def lines(self) -> list[str]:
        return ["".join(cells).rstrip() for cells in self.cells]

    def feed(self, text: str) -> None:
        for part in re.findall(r"\033\[[0-9;?]*[A-Za-z]|.", text, re.DOTALL):
            if part == "\n":
                self._look()
                self._down()
            elif part == "\r":
                self.column = 0
            elif part == "\b":
                self.column = max(0, self.column - 1)
            elif part.startswith("\033["):
                self._control(part)
            else:
                self._put(part)

    def _control(self, code: str) -> None:
        number, kind = int(code[2:-1] or 0) if code[2:-1].isdigit() or code[2:-1] == "" else 0, code[-1]
        if kind == "K":
            self._look()
            del self.cells[self.row][self.column if number == 0 else 0 :]
        elif kind == "A":
            self.row = max(0, self.row - max(1, number))
        elif kind != "m":
            raise AssertionError(f"a control code that this terminal does not know: {code!r}")

    def _put(self, character: str) -> None:
        assert character.isprintable() or character == "\t", f"a terminal does not show {character!r}"
        if self.column == self.columns:
            self.wrapped.add(self.row)
            self._down()
            self.column = 0
        cells = self.cells[self.row]
        cells += " " * (self.column + 1 - len(cells))
        if self.column == 0 and cells[0] != " ":
            self._look()
        cells[self.column] = character
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        self.column = 0  # the kernel sends a carriage return before each line feed
        if self.row == len(self.cells):
            self.cells.append([])

    def _look(self) -> None:
        line = "".join(self.cells[self.row]).rstrip()
        if line:
            self.seen.append(line)


def on_terminal(
    command: Sequence[str], columns: int, env: dict[str, str] | None = None, cwd: Path | None = None, limit: float = 240
) -> tuple[int, Screen, str]:
    """Runs a command with both streams on a pseudo-terminal.

    Returns:
        Exit code, what the terminal shows at the end, and the raw text.
    """
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    full = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **(env or {})}
    full.pop("COLUMNS", None)
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=full, cwd=cwd, close_fds=True, start_new_session=True
    )
    os.close(child)
    raw, end = b"", time.monotonic() + limit
    while True:
        assert time.monotonic() < end, f"not done after {limit:.0f} s: {raw[-500:]!r}"
        if not select.select([main], [], [], 1.0)[0]:
            continue
        try:
            part = os.read(main, 65536)
        except OSError:  # the last one to hold the other end is gone
            break
        if not part:
            break
        raw += part
    os.close(main)
    code = process.wait(timeout=30)
    text = raw.decode()
    screen = Screen(columns)
    screen.feed(text.replace("\r\n", "\n"))
    return code, screen, text

"""Where people read: which process speaks, how wide a line may be, and one live line under all that is printed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CLEAR = "\r\033[K"  # to the first column, then erase to the end of the line
_CONTROL = re.compile(r"\033\[[0-9;?]*[A-Za-z]")
_PATIENCE = 5.0
_spoken = "stderr"


def first_process() -> bool:
    """Whether this is process 0 of a run; the others say nothing that is the same for all."""
    return process_number() == 0


def process_number() -> int:
    """Which process of the run this is, as far as it is known: before they have met, a launcher's variables tell."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_rank())
    numbers = (os.environ.get(name, "") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
    return next((int(number) for number in numbers if number.isdigit() and int(number)), 0)


@contextmanager
def speaking_on(stream: str) -> Iterator[None]:
    """While active, what is said of the work goes to `stdout` or `stderr` (the default); warnings always to the latter.

    Commands whose result is files say all of it on standard output: in a pipe it is one text, in its order.
    """
    global _spoken
    before, _spoken = _spoken, stream
    try:
        yield
    finally:
        _spoken = before


def spoken() -> str:
    """Which stream that is."""
    return _spoken


class Speaker(logging.Handler):
    """Prints log records where the command speaks, on whatever that stream is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = "stderr" if record.levelno >= logging.WARNING else _spoken
        with suppress(OSError, ValueError):  # the reader is gone: no reason to end the work
            print(self.format(record), file=getattr(sys, stream), flush=True)


def is_live() -> bool:
    """Whether a line may rewrite itself: all that is said goes to one terminal, and it understands how to erase.

    With one of the two streams in a pipe, its reader may write to the same terminal at any moment.
    """
    return os.environ.get("TERM", "") not in ("", "dumb") and all(_is_terminal(s) for s in (sys.stdout, sys.stderr))


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # none at all, or closed
        return False


def line_width() -> int:
    """How many characters a line of a table may have: the terminal's width, 80 in a log; `COLUMNS` wins."""
    return shutil.get_terminal_size((80, 24)).columns


class LiveLine:
    """The last line of the terminal. What anybody prints in the meantime goes above it, whole.

    While there is something to show, `sys.stdout`, `sys.stderr` and the streams of logging's handlers are wrapped: a
    message first erases the line, and the line is written again under it.
    """

    def __init__(self) -> None:
        self._text = ""
        self._shown = False
        self._open: float | None = None  # since when somebody's line lacks its end
        self._process = os.getpid()
        self._wrapped: dict[str, _Above] = {}
        self._handlers: list[tuple[Any, Any]] = []

    def show(self, text: str) -> None:
        """Puts a text there, cut at the terminal's width; an empty one takes the line away."""
        if not text:
            self._leave()
            return
        if not self._wrapped:
            self._enter()
        self._text = _cut(text, max(1, line_width() - 1))
        stream = self._wrapped["stderr"].wrapped
        if self._open is not None:
            if time.monotonic() - self._open < _PATIENCE:
                return
            stream.write("\n")
            self._open = None
        stream.write(_CLEAR + self._text)
        stream.flush()
        self._shown = True

    def above(self, stream: Any, text: str) -> None:
        """Writes somebody's text to one of the wrapped streams."""
        # a worker that was forked off, or another process of the run: the line is not its own, but it may be there
        foreign = os.getpid() != self._process
        erase = _CLEAR if self._shown or (foreign and self._open is None) else ""
        unfinished = _CONTROL.sub("", re.split(r"[\r\n]", text)[-1]).strip()
        live = bool(self._text) and not unfinished and not foreign
        stream.write(erase + text + (_CLEAR + self._text if live else ""))
        stream.flush()
        self._shown = live
        self._open = time.monotonic() if unfinished else None

    def _enter(self) -> None:
        self._process = os.getpid()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            stream.flush()
            self._wrapped[name] = _Above(stream, self)
            setattr(sys, name, self._wrapped[name])
        by_stream = {id(above.wrapped): above for above in self._wrapped.values()}
        for handler in _handlers():
            stream = getattr(handler, "stream", None)
            if id(stream) in by_stream:
                self._handlers.append((handler, stream))
                handler.setStream(by_stream[id(stream)])

    def _leave(self) -> None:
        if not self._wrapped:
            return
        if self._shown:
            stream = self._wrapped["stderr"].wrapped
            stream.write(_CLEAR)
            stream.flush()
        self._text, self._shown, self._open = "", False, None
        for handler, stream in self._handlers:
            if isinstance(handler.stream, _Above):
                handler.setStream(stream)
        for name, above in self._wrapped.items():
            if getattr(sys, name) is above:
                setattr(sys, name, above.wrapped)
        self._wrapped, self._handlers = {}, []


class _Above:
    """A stream whose text goes above the live line."""

    def __init__(self, wrapped: Any, line: LiveLine) -> None:
        self.wrapped, self._line = wrapped, line

    def write(self, text: str) -> int:
        if text:
            self._line.above(self.wrapped, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def give_way() -> None:
    """For a process that shows nothing, on the terminal of one that does: what it prints erases the live line first."""
    if is_live():
        line = LiveLine()
        line._process = -1
        sys.stdout, sys.stderr = _Above(sys.stdout, line), _Above(sys.stderr, line)


def _handlers() -> list[logging.StreamHandler[Any]]:
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]


def _cut(text: str, width: int) -> str:
    """The beginning that takes so many columns: letters of East Asia take two, what cannot be shown becomes `?`."""
    shown, used = [], 0
    for letter in text:
        used += 2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter)
        if used > width:
            break
        shown.append(letter if letter.isprintable() else "?")
    return "".join(shown)


live_line = LiveLine()

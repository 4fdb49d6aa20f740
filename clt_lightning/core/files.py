"""Files that are whole or not there, texts that users wrote, checksums: one way for all of the package."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError

Place = str | os.PathLike[str]

_ADVICE = "Make room, or write elsewhere"


# -- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Place, advice: str = _ADVICE) -> Iterator[Path]:
    """Gives a name to write to; the file gets its own name when the block ends well, forced to the disk.

    A reader, and a run that is started after a crash, sees the old file or the new one. After an error nothing is left.

    Args:
        path: the file to write.
        advice: what the message says to do when the disk refuses.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def whole_folder(path: Place, replaceable: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """As `whole_file`, for a folder: what stood there before is gone when the new one has its name, and not sooner.

    Args:
        path: the folder to write.
        replaceable: whether what stands there may be replaced; None: yes.

    Raises:
        UserError: the disk is full, the place cannot be written, or something else stands there.
    """
    path = Path(path)
    if path.exists() and replaceable is not None and not replaceable(path):
        raise UserError(f"{path} already holds something else: move it away, or name another folder")
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
        sync_folder(path.parent)


def sync_folder(folder: Place) -> None:
    """Puts a rename on the disk; file systems that cannot are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_text(path: Place, text: str, advice: str = _ADVICE) -> None:
    """Writes a text, whole or not at all."""
    with whole_file(path, advice) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Place, content: Any, indent: int | None = 1, advice: str = _ADVICE) -> None:
    """Writes JSON, whole or not at all; numbers that JSON does not know (NaN, infinity) become null."""
    write_text(path, json.dumps(finite(content), indent=indent, allow_nan=False) + "\n", advice)


def finite(content: Any) -> Any:
    """The same nest of dicts, lists and plain values, with None in the place of NaN and infinity."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EEXIST: "something else stands there",
    errno.EISDIR: "a folder stands there",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reports an error",
}


@contextmanager
def disk_errors(path: Place, advice: str = _ADVICE) -> Iterator[None]:
    """Turns what the file system refuses while `path` is written into one message.

    Args:
        path: what is written.
        advice: what to do then.

    Raises:
        UserError: the disk is full, the place is not writable or not a place for a file.
    """
    try:
        yield
    except OSError as error:
        reason = disk_reason(error)
        if reason is None:
            raise
        raise UserError(f"{path} cannot be written: {reason}. {advice}") from error


def disk_reason(error: BaseException) -> str | None:
    """Why the file system refused, in words; None for an error that is not about the disk."""
    if isinstance(error, OSError) and error.errno in _REASONS:
        return _REASONS[error.errno]
    return None


# -- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def read_errors(path: Place) -> Iterator[None]:
    """Turns what the file system refuses while `path`, or something below it, is read into one message.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def read_text(path: Place) -> str:
    """A text file that a user wrote: UTF-8, with or without a byte-order mark, any line ends.

    Raises:
        UserError: it is not there, cannot be read, or is not UTF-8; the message names the line.
    """
    with read_errors(path):
        data = Path(path).read_bytes()
    return decode_text(data, path)


def decode_text(data: bytes, name: Place) -> str:
    """The bytes of a user's text file as a string, without a byte-order mark.

    Raises:
        UserError: it is not UTF-8; the message names file and line.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{name} is UTF-16, not UTF-8: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (a file in Latin-1?): save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Place) -> list[str]:
    """The lines of a user's list, one entry per line; blank lines at the end do not count.

    Raises:
        UserError: as `read_text`; or a blank line between entries, which would shift all that follow.
    """
    return lines_of(read_text(path), path)


def lines_of(text: str, name: Place) -> list[str]:
    """The entries of a list, one per line, stripped; as `read_lines`, for a text that was read already."""
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line:
            raise UserError(
                f"{name}, line {number}: a blank line inside a list would shift the entries after it: take it out"
            )
    return lines


def read_json(path: Place) -> dict[str, Any]:
    """A table out of a JSON file.

    Raises:
        UserError: no such file, not JSON, or not a table.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no table, but a {type(content).__name__}")
    return content


def sha256(path: Place) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_by_the_group(path: Place) -> None:
    """Gives a file the mode that the process's umask leaves; temporary files have 0600."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask | stat.S_IRUSR | stat.S_IWUSR)

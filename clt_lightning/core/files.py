"""Files that are whole or not there, texts that users wrote, checksums: one way for all of the package."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    The file can be read by whom the umask allows, whatever mode its writer gave it (safetensors: the owner alone).

    Args:
        path: the file to write.
        advice: what the message says to do when the disk refuses.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, advice), _folders_above(path):
        try:
            yield temporary
            _settle(temporary)
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
    if os.path.ismount(path):
        raise UserError(f"{path} is a mount point, which nothing can take the place of: name a folder in it")
    if path.exists() and replaceable is not None and not replaceable(path):
        raise UserError(f"{path} already holds something else: move it away, or name another folder")
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    with disk_errors(path), _folders_above(path):
        try:
            _clear_after_a_kill(path, temporary, old)
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _settle(file)
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


def _settle(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    readable_by_the_group(path)


@contextmanager
def _folders_above(path: Path) -> Iterator[None]:
    """Makes the folders in which `path` is to lie; those that it made are gone again after an error."""
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise


def _clear_after_a_kill(path: Path, temporary: Path, old: Path) -> None:
    # process numbers come again, in a container all the time
    if old.exists() and not path.exists():
        os.replace(old, path)
    for left in (temporary, old):
        if left.exists():
            shutil.rmtree(left)


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
    errno.EFBIG: "the file is larger than this system or `ulimit -f` allows",
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
    except UserError:
        raise
    except Exception as error:
        reason = disk_reason(error)
        if reason is None or _is_elsewhere(error, Path(path)):
            raise
        raise UserError(f"{path} cannot be written: {reason}. {advice}") from error


def disk_reason(error: BaseException) -> str | None:
    """Why the file system refused, in words; None for an error that is not about the disk.

    Libraries hide the system's answer: safetensors and `shutil.copytree` give its number in their text, `torch.save`
    stumbles over a file that is shorter than what it wrote.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return _REASONS.get(error.errno)
    numbers = re.findall(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))
    for number in (int(a or b) for a, b in numbers):
        if number in _REASONS:
            return _REASONS[number]
    if isinstance(error, RuntimeError) and re.search(
        r"PytorchStreamWriter|inline_container|iostream error", str(error)
    ):
        return (error.__context__ and disk_reason(error.__context__)) or "the disk took less than was written (full?)"
    return None


def remove_leftovers(folder: Place) -> list[str]:
    """Removes what writers that were killed have left half-written in a folder, or half-replaced.

    Whoever calls this keeps others from writing there.

    Returns:
        Names of what is gone.
    """
    folder = Path(folder)
    gone = []
    for path in sorted(folder.glob(".*.*.*")) if folder.is_dir() else []:
        found = _LEFTOVER.fullmatch(path.name)
        if found is None or _is_running(int(found["pid"])):
            continue
        if found["end"] == "old" and not (folder / found["name"]).exists():
            os.replace(path, folder / found["name"])  # killed between the two renames of `whole_folder`
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        gone.append(path.name)
    return gone


_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<end>tmp|old)")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()


def _is_elsewhere(error: BaseException, path: Path) -> bool:
    """Whether it is about a file that is not being written: what is read meanwhile, and may not be."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return False
    place, path = Path(os.fsdecode(name)).absolute(), path.absolute()
    return place not in (path, *path.parents) and path.parent not in place.parents


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
    r"""The bytes of a user's text file as a string, without byte-order marks, with `\n` at every line's end.

    Raises:
        UserError: it is not UTF-8; the message names file and line.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{name} is UTF-16, not UTF-8: save it as UTF-8")
    if b"\0" in data:
        line = _line(data, data.index(b"\0"))
        raise UserError(f"{name}, line {line}: a zero byte (a file in UTF-16, or no text?): save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = _line(data, error.start)
        raise UserError(
            f"{name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (a file in Latin-1?): save it as UTF-8"
        ) from error
    # joining files leaves marks in the middle, too
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


def _line(data: bytes, at: int) -> int:
    return len((data[:at] + b".").splitlines())


def read_lines(path: Place, *, gaps: bool = False) -> list[str]:
    """The lines of a user's list, one entry per line; blank lines at the end do not count.

    Args:
        path: the file.
        gaps: whether blank lines are allowed and left out: for lists in which an entry's place means nothing.

    Raises:
        UserError: as `read_text`; or a blank line between entries, which would shift all that follow.
    """
    return lines_of(read_text(path), path, gaps=gaps)


def lines_of(text: str, name: Place, *, gaps: bool = False) -> list[str]:
    """The entries of a list, one per line, stripped; as `read_lines`, for a text that was read already."""
    return [entry for _, entry in numbered_lines(text, name, gaps=gaps)]


def numbered_lines(text: str, name: Place, *, gaps: bool = False) -> list[tuple[int, str]]:
    """As `lines_of`, each entry with the number of its line, for messages."""
    entries = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    while entries and not entries[-1][1]:
        entries.pop()
    for number, entry in entries:
        if not entry and not gaps:
            raise UserError(
                f"{name}, line {number}: a blank line inside a list would shift the entries after it: take it out"
            )
    return [(number, entry) for number, entry in entries if entry]


def read_json(path: Place) -> dict[str, Any]:
    """A table out of a JSON file.

    Raises:
        UserError: no such file, not JSON, or not a table.
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, name: Place) -> dict[str, Any]:
    """As `read_json`, for a text that was read already."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        raise UserError(f"{name}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} holds no table, but a {type(content).__name__}")
    return content


def sha256(path: Place) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_by_the_group(path: Place) -> None:
    """Gives a file at least the mode that the umask leaves; libraries make some that only their owner can read."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    wanted = mode | (0o666 & ~_umask())
    if wanted != mode:
        with suppress(PermissionError):  # another's file, or a file system without modes
            os.chmod(path, wanted)


def _umask() -> int:
    try:
        # os.umask tells by setting: for a moment other threads would make files of another mode
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("\nUmask:", 1)[1].split(None, 1)[0], 8)
    except (OSError, IndexError, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask

"""One process at a time writes to a folder, and another one is told which."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors

log = logging.getLogger(__name__)

#: The file that is locked, in the folder that it stands for
NAME = ".lock"
#: Seconds to wait for another process that only looks, or has just died
_PATIENCE, _PATIENCE_WITH_THE_DEAD = 0.5, 10.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)

_descriptors: set[int] = set()


@dataclass(frozen=True)
class Holder:
    """The process that writes to a folder.

    Attributes:
        host: the machine's name.
        pid: the process's number there.
        since: time in UTC.
        command: its first word, such as `fit`.
    """

    host: str
    pid: int
    since: str
    command: str

    @classmethod
    def this_process(cls) -> Holder:
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), Path(sys.argv[0]).name)
        return cls(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"), command)

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_dead(self) -> bool:
        """Whether this machine knows that it has ended."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}, since {self.since})"


class Lock:
    """The right to write to a folder, until it is released or the process ends.

    The kernel holds it (`flock`), so a process that was killed leaves nothing that would stop the next one. The file
    says who it is. On file systems without locks, the file alone has to do.

    Args:
        folder: it exists.

    Attributes:
        is_the_kernels: False where the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_the_kernels = True
        self._descriptor: int | None = None
        self._owner = 0

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._descriptor is not None and self._owner == os.getpid()

    def acquire(self) -> None:
        """Takes it.

        Raises:
            UserError: another process writes to the folder; host and process are named. Or the folder is not writable.
        """
        begun = time.monotonic()
        while not self.attempt():
            other = holder(self.folder)
            patience = _PATIENCE_WITH_THE_DEAD if other is not None and other.is_dead else _PATIENCE
            if time.monotonic() - begun > patience:
                raise busy(self.folder, other)
            time.sleep(0.05)

    def attempt(self) -> bool:
        """Takes it, if it is free at this moment.

        Raises:
            UserError: the folder is not writable.
        """
        path = self.folder / NAME
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the one before may have removed the file between these two lines: then this is a lock on nothing
            free = self._names(descriptor)
        except BlockingIOError:
            free = False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            self.is_the_kernels = False
            free = self._free_by_its_text(path)
        if not free:
            os.close(descriptor)
            return False
        with disk_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Holder.this_process())).encode(), 0)
        self._descriptor, self._owner = descriptor, os.getpid()
        _descriptors.add(descriptor)
        return True

    def _names(self, descriptor: int) -> bool:
        """Whether the file in the folder is still this one."""
        try:
            return os.path.samestat(os.fstat(descriptor), (self.folder / NAME).stat())
        except FileNotFoundError:
            return False

    def _free_by_its_text(self, path: Path) -> bool:
        other = _read(path)
        if other is None or other.is_dead:
            return True
        if other.is_here:
            return other.pid == os.getpid()
        # it may have been killed, and a requeued job must not wait for ever
        log.warning(
            "%s: this file system has no locks; %s may still write here: make sure that it is gone", path, other
        )
        return True

    def release(self) -> None:
        """Gives it back; without one, nothing happens."""
        if self.held:
            assert self._descriptor is not None
            if self._names(self._descriptor):  # not where the folder went, and another process has made it again
                (self.folder / NAME).unlink(missing_ok=True)
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None


def busy(folder: Path, other: Holder | None) -> UserError:
    """That another process writes to a folder."""
    return UserError(
        f"{folder} is being written by {other or 'another process'}: wait until it has ended, or stop it there. To "
        "train beside it, leave out --ckpt_path and --version, or give another --name"
    )


def holder(folder: Path) -> Holder | None:
    """Which process writes to a folder now; None where none does, or none can be told."""
    path = folder / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path) or Holder("an unknown machine", 0, "unknown", "unknown")
    except OSError:
        other = _read(path)
        return None if other is None or other.is_dead else other
    finally:
        os.close(descriptor)
    return None


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _forget() -> None:
    """In a forked child: the lock is the parent's, and ends with it."""
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_forget)

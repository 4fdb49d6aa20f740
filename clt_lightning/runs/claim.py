"""A version of a run for one process alone: chosen, made and locked, and gone again if nothing came of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, disk_reason
from clt_lightning.runs.folder import RunFolder, versions
from clt_lightning.runs.lock import Lock


class Claim:
    """A run's folder that this process, and no other, writes to.

    Attributes:
        folder: the run's folder.
        fresh: whether there was nothing in it.
        begun: whether what is in it is to stay.
    """

    def __init__(self, folder: RunFolder, lock: Lock, made: list[Path]) -> None:
        self.folder = folder
        self.fresh = folder.is_empty
        self.begun = False
        self._lock, self._made = lock, made

    @classmethod
    def of(cls, folder: RunFolder) -> Claim:
        """Takes a folder, made if it is not there.

        Raises:
            UserError: another process writes to it, or it cannot be made or written.
        """
        made = _missing(folder.path)
        lock = Lock(folder.path)
        for _ in range(10):
            try:
                _make(folder.path)
                lock.acquire()
                return cls(folder, lock, made)
            except FileNotFoundError:
                continue  # another start, that failed, has taken it away between these two lines
        raise UserError(f"{folder.path} is taken away again and again: does another process remove it?")

    @classmethod
    def next(cls, root: Path) -> Claim:
        """Takes the first version of a run that nobody has, of however many processes that ask at once.

        Args:
            root: `<runs_dir>/<name>`.

        Raises:
            UserError: it cannot be made or written.
        """
        made = _missing(root)
        while True:
            used = [folder.version or 0 for folder in versions(root) if not folder.is_empty]
            for number in count(max(used, default=-1) + 1):
                folder = RunFolder(root / f"version_{number}")
                try:
                    new = _make(folder.path)
                    lock = Lock(folder.path)
                    if not lock.attempt():
                        continue  # a start at the same moment has it
                    if folder.is_empty and (new or lock.is_the_kernels):
                        # the run's own folder, too, which another start that fails may have made
                        return cls(folder, lock, list(dict.fromkeys([folder.path, root, *made])))
                    lock.release()
                except FileNotFoundError:
                    break  # a start that failed has taken the folder away: look again

    def begin(self) -> None:
        """What is in the folder stays from now on."""
        self.begun = True

    def release(self) -> None:
        """Lets others write there. Of a claim that has not begun, nothing is left that was not there before."""
        if not self._lock.held:
            return
        if self.begun or self.folder.path not in self._made:
            self._lock.release()
            return
        shutil.rmtree(self.folder.path, ignore_errors=True)
        self._lock.release()
        for above in self._made:
            with suppress(OSError):  # gone, or somebody else has put something there
                above.rmdir()


def _make(path: Path) -> bool:
    """Makes a folder; whether it was not there.

    Raises:
        UserError: it cannot be made.
        FileNotFoundError: another process has removed the folder above it, or this one, at the same moment.
    """
    with disk_errors(path):
        for above in reversed(_missing(path.parent)):
            with suppress(FileExistsError):
                above.mkdir()
        try:
            path.mkdir()
            return True
        except FileExistsError:
            if path.is_dir():
                return False
            if path.exists():
                raise
            raise FileNotFoundError(path) from None


def _missing(path: Path) -> list[Path]:
    """The folders that are still to be made for this one, from it upwards."""
    return [above for above in (path, *path.parents) if not above.exists()]


def require_writable(folder: Path) -> None:
    """Tries whether a folder could be made and written, before hours of work that could not be kept. Leaves nothing.

    Raises:
        UserError: it could not.
    """
    there = next(above for above in (folder, *folder.parents) if above.exists())
    try:
        if not there.is_dir():
            raise NotADirectoryError(20, "a file is in the way", str(there))
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = disk_reason(error) or error.strerror or str(error)
        raise UserError(
            f"the run cannot be written to {folder} ({reason}): give another folder with --runs_dir, make room, or "
            "mend its permissions"
        ) from error

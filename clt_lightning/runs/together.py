"""Several parts of a folder that change as one: after a kill at any moment all are the old ones, or all the new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, read_json, sync_folder, write_json
from clt_lightning.runs.lock import Lock

#: New parts while they are written, and once all of them are whole
_DRAFT, _WHOLE = ".parts.tmp", ".parts.whole"
_MANIFEST = "manifest.json"


class Parts:
    """Where the new parts are written.

    Args:
        draft: an empty folder.
    """

    def __init__(self, draft: Path) -> None:
        self._draft = draft
        self.names: list[str] = []

    def place(self, name: str) -> Path:
        """Where to write the file or folder that is to become `<folder>/<name>`; the folder above it is there."""
        self.names.append(name)
        path = self._draft / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def together(folder: Path) -> Iterator[Parts]:
    """Takes new parts of a folder; when the block ends well, they stand in the place of the old ones, all or none.

    Whoever writes holds the folder's lock.

    Args:
        folder: it exists.

    Raises:
        UserError: the disk is full, or the folder cannot be written; then the old parts are all there.
    """
    draft = folder / _DRAFT
    with disk_errors(folder):
        settle(folder)
        draft.mkdir()
        try:
            parts = Parts(draft)
            yield parts
            write_json(draft / _MANIFEST, {"parts": parts.names})
            for path in draft.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            os.replace(draft, folder / _WHOLE)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(folder)
        settle(folder)


def settle(folder: Path) -> None:
    """Finishes what a writer that was killed had begun to put in place, and removes what it had only half written.

    Called under the folder's lock.
    """
    whole = folder / _WHOLE
    if (whole / _MANIFEST).is_file():
        for name in read_json(whole / _MANIFEST)["parts"]:
            new, now = whole / name, folder / name
            if not new.exists():
                continue  # in place already
            now.parent.mkdir(parents=True, exist_ok=True)
            if now.is_dir():
                old = whole / f"{name}.old"
                shutil.rmtree(old, ignore_errors=True)
                os.replace(now, old)
            os.replace(new, now)
        sync_folder(folder)
        (whole / _MANIFEST).unlink()
    for left in (whole, folder / _DRAFT):
        shutil.rmtree(left, ignore_errors=True)


def settle_to_read(folder: Path) -> None:
    """`settle` for one who only reads: does nothing while another process writes, or where this one may not."""
    if not (folder / _WHOLE).exists():
        return
    lock = Lock(folder)
    try:
        if lock.attempt():
            settle(folder)
    except (UserError, OSError):
        return
    finally:
        lock.release()

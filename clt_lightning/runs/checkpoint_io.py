"""Checkpoint files that are whole or not there, and a check that tells a damaged one.

A checkpoint is torch's zip file, which holds a CRC-32 of every record: anything that reads those reads these, and a
file can be checked without a second one beside it that might belong to another state.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from clt_lightning.core import kinds
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_reason
from clt_lightning.runs.folder import LAST, PREVIOUS

log = logging.getLogger(__name__)

_intact: set[tuple[str, int, int]] = set()


def temporary(path: Path) -> Path:
    """Where a checkpoint is written before it gets its name; always the same: a killed writer leaves one."""
    return path.with_name(f".{path.name}.tmp")


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file.

    Reads the whole file once (about 1 GB/s) and compares every record with its checksum.

    Args:
        path: a checkpoint as `torch.save` writes it.

    Returns:
        What is wrong, in words; None for a file that is whole.
    """
    try:
        stat = path.stat()
        identity = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
        if identity in _intact:
            return None
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
            names = {name.split("/", 1)[-1] for name in file.namelist()}
        torch._C.PyTorchFileReader(str(path))  # its zip reader minds fields that Python's passes over; reads no weights
    except FileNotFoundError:
        return "it does not exist"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        return f"it is cut off or overwritten ({error})"
    except OSError as error:
        return f"it cannot be read ({error})"
    if bad is not None:
        return f"record {bad} does not have its checksum"
    if "data.pkl" not in names:
        return "it is no checkpoint of torch.save"
    held = kinds.foreign_objects(path)
    if held:
        return f"it {kinds.in_words(held)}"
    _intact.add(identity)
    return None


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu", mmap: bool = True) -> dict[str, Any]:
    """What a checkpoint holds; tensors and plain values alone, never what a pickle would run.

    Args:
        path: the file.
        map_location: as in `torch.load`.
        mmap: leaves the weights on the disk until they are looked at.

    Raises:
        UserError: it is not there, damaged, or holds anything else.
    """
    reason = "it is an address: download it first" if "://" in str(path) else damage(Path(path))
    if reason is not None:
        raise UserError(f"the checkpoint {path} cannot be taken: {reason}")
    try:
        content = torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"the checkpoint {path} holds more than tensors and plain values{f' ({what[1]})' if what else ''}, and is "
            "not loaded: what it holds would be run"
        ) from error
    except RuntimeError as error:  # a TorchScript archive
        raise UserError(f"the checkpoint {path} cannot be taken: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"the checkpoint {path} holds no table of states, but a {type(content).__name__}")
    return content


def usable(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run: `last.ckpt`, or the one before it if that is damaged.

    Args:
        folder: the run's `checkpoints/`.

    Returns:
        Its path; None if there is neither file. A damaged `last.ckpt` is named in a warning.

    Raises:
        UserError: there are such files, but none is whole.
    """
    wrong: list[str] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        reason = damage(path)
        if reason is None:
            if wrong:
                rank_zero_warn(f"{'; '.join(wrong)}. The checkpoint before it is used: {path}")
            return path
        wrong.append(f"the checkpoint {path} is damaged: {reason}")
    if wrong:
        others = ", ".join(sorted(p.name for p in folder.glob("*.ckpt") if p.name not in (LAST, PREVIOUS)))
        advice = f"resume from another one ({others}) with --ckpt_path, or " if others else ""
        raise UserError(f"{'; '.join(wrong)}. {advice[:1].upper()}{advice[1:]}move them away to start afresh")
    return None


def remove_temporaries(folder: Path) -> list[str]:
    """Removes what a killed writer left behind; to be called by one process, before anything is written.

    Returns:
        Names of the files removed.
    """
    left = sorted(folder.glob(".*.ckpt.tmp")) if folder.is_dir() else []
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, keeps the state before `last.ckpt`, and refuses damaged files by name.

    The file is written under another name, forced to the disk and then renamed, so that a reader, or a run that is
    started after a crash, sees the old state or the new one. Before a new `last.ckpt` takes its place, the old one
    becomes `previous.ckpt` (a hard link: no copy). Other addresses (`s3://`) go Lightning's own way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the file cannot be written (disk full, no permission), or holds objects that no start after this
                one could read; what was there before is untouched.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        unfinished = temporary(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _require_readable(unfinished, path)
            if path.name == LAST and path.exists():
                _keep(path, path.with_name(PREVIOUS))
            os.replace(unfinished, path)
            _sync_folder(path.parent)
        except Exception as error:
            unfinished.unlink(missing_ok=True)
            reason = disk_reason(error) or (str(error) if isinstance(error, OSError) else None)
            if reason is None:
                raise
            kept = f"; {path} still holds the state before" if path.exists() else ""
            raise UserError(
                f"the checkpoint {path} cannot be written: {reason}{kept}. Make room, or write elsewhere"
            ) from error

    def link_checkpoint(self, source: str | Path, path: str | Path) -> bool:
        """Gives a whole checkpoint another name, as `save_checkpoint` would write it there; no copy.

        Returns:
            Whether it could be done: not on file systems without hard links, nor at other addresses (`s3://`).
        """
        if "://" in f"{source}{path}":
            return False
        source, path = Path(source), Path(path)
        link = temporary(path)
        try:
            link.unlink(missing_ok=True)
            os.link(source, link)
            if path.name == LAST and path.exists():
                _keep(path, path.with_name(PREVIOUS))
            os.replace(link, path)
            link.unlink(missing_ok=True)  # renaming one name of a file to another of the same does nothing
            _sync_folder(path.parent)
        except OSError as error:
            log.debug("hard link %s: %s", path, error)
            link.unlink(missing_ok=True)
            return False
        return True

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            UserError: the file is damaged.
        """
        if "://" not in str(path):
            reason = damage(Path(path))
            if reason is not None:
                raise UserError(
                    f"the checkpoint {path} is damaged or missing: {reason}. --ckpt_path last takes the newest whole "
                    "one of the run"
                )
        return super().load_checkpoint(path, map_location, weights_only=True)  # never the code that a pickle may hold


def _require_readable(unfinished: Path, path: Path) -> None:
    """A run whose checkpoints nobody can load ends at the first of them, not when it is to go on."""
    held = kinds.foreign_objects(unfinished)
    if held:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"the checkpoint {path} could not be read again: it {kinds.in_words(held)}. What callbacks and modules put "
            "into it (state_dict, on_save_checkpoint, save_hyperparameters) must be tensors, numbers, strings, lists "
            "and dicts"
        )


def _keep(path: Path, name: Path) -> None:
    """Gives the file a second name, so that the first one never stops naming a whole file."""
    link = temporary(name)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: for a moment only the second name is there
        os.replace(path, name)
        return
    os.replace(link, name)


def _sync_folder(folder: Path) -> None:
    # a rename is on the disk when its folder is
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot
        log.debug("fsync of %s: %s", folder, error)
    finally:
        os.close(descriptor)

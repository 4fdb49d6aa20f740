"""Writes a split's tars: deterministic bytes, atomic files, and a record by which an interrupted run goes on."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress

RECORD = "shards.json"
_PARTIAL = ".shards.partial.json"
_TAR_BLOCK = 512


@dataclass(frozen=True)
class Item:
    """One sample to be written.

    Attributes:
        name: what it is in the source; part of the record's fingerprint, and named in errors.
        parts: makes its members, bytes by suffix; called once, when it is written.
    """

    name: str
    parts: Callable[[], Mapping[str, bytes]]


@dataclass(frozen=True)
class Limits:
    """When a shard is full."""

    samples: int = 10_000
    bytes: int = 1_000_000_000


def write_split(
    folder: Path, items: Sequence[Item], *, limits: Limits | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes `0.tar, 1.tar, …`, `shards.json` and, last of all, `nshards.txt`.

    Each tar is written under a temporary name and renamed. After an interruption the same call verifies the finished
    tars by their SHA-256, keeps the sound ones and writes the rest.

    Args:
        folder: the split's folder.
        items: the samples, in the order in which they are written.
        limits: when a shard is full.
        settings: what else decides the bytes; a finished folder with other settings or items is refused.

    Returns:
        The record: `{"samples", "fingerprint", "settings", "shards": [{"name", "samples", "bytes", "sha256"}, …]}`.

    Raises:
        UserError: no items, the disk is full or not writable, or the folder holds other tars.
    """
    limits = limits or Limits()
    if not items:
        raise UserError(f"there is no sample to write into {folder}")
    fingerprint = _fingerprint(items, limits, settings or {})
    with _disk_errors(folder), Progress(folder.name, len(items), "samples", sums_up=True) as progress:
        folder.mkdir(parents=True, exist_ok=True)
        done = _finished(folder, fingerprint)
        # claims the folder before its first tar: a run that is killed right after that one must be able to go on
        _write_json(folder / _PARTIAL, {"fingerprint": fingerprint, "shards": done})
        for left in folder.glob(".*.tmp"):
            left.unlink()
        shards: list[dict[str, Any]] = []
        at = 0
        while at < len(items):
            number = len(shards)
            entry = done[number] if number < len(done) else None
            if entry is None or not _sound(folder, entry):
                entry = _write_shard(folder, number, items, at, limits, progress)
            shards.append(entry)
            at += entry["samples"]
            if number < len(done):
                progress.restart(at)
            _write_json(folder / _PARTIAL, {"fingerprint": fingerprint, "shards": shards})
        for left in folder.glob("*.tar"):  # of an unfinished run with other options
            if left.stem.isdigit() and int(left.stem) >= len(shards):
                left.unlink()
        record = {
            "samples": len(items),
            "fingerprint": fingerprint,
            "settings": dict(settings or {}),
            "shards": shards,
        }
        _write_json(folder / RECORD, record)
        write_text(folder / "nshards.txt", f"{len(shards)}\n")
        (folder / _PARTIAL).unlink(missing_ok=True)
    return record


def write_text(path: Path, text: str) -> None:
    """Writes a small file atomically."""
    with _disk_errors(path.parent), _atomic(path) as f:
        f.write(text.encode())


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def _fingerprint(items: Sequence[Item], limits: Limits, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([limits.samples, limits.bytes, dict(settings)], sort_keys=True).encode())
    for item in items:
        digest.update(item.name.encode() + b"\n")
    return digest.hexdigest()


def _finished(folder: Path, fingerprint: str) -> list[dict[str, Any]]:
    """The shards that an earlier run recorded, if it was the same run."""
    for name in (RECORD, _PARTIAL):
        try:
            record = json.loads((folder / name).read_text())
        except (FileNotFoundError, ValueError):
            continue
        if record.get("fingerprint") == fingerprint:
            return list(record["shards"])
        if name == RECORD:
            raise UserError(
                f"{folder} already holds tars made from another source or with other settings: give another --output, "
                "or remove that folder first"
            )
    strange = [p.name for p in folder.glob("*.tar")] if not (folder / _PARTIAL).exists() else []
    if strange:
        raise UserError(
            f"{folder} already holds tars that this command did not write ({strange[0]}, …): use another --output"
        )
    return []


def _sound(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / entry["name"]
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() == entry["sha256"]


def _write_shard(
    folder: Path, number: int, items: Sequence[Item], start: int, limits: Limits, progress: Progress
) -> dict[str, Any]:
    path = folder / f"{number}.tar"
    with _atomic(path) as raw:
        out = _Hashing(raw)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            count = 0
            for item in items[start : start + limits.samples]:
                parts = item.parts()
                size = sum(_TAR_BLOCK + -(-len(data) // _TAR_BLOCK) * _TAR_BLOCK for data in parts.values())
                if count and tar.offset + size > limits.bytes:
                    break
                for suffix, data in parts.items():
                    tar.addfile(_member(f"s{start + count:07d}.{suffix}", len(data)), io.BytesIO(data))
                count += 1
                progress.to(start + count, f"shard {number}")
    return {"name": path.name, "samples": count, "bytes": out.written, "sha256": out.digest.hexdigest()}


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644  # mtime, owner and group stay 0: the same samples give the same bytes
    return info


class _Hashing:
    """A file that is written once, front to back, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.written, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.written += len(data)
        return self._file.write(data)


@contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that has its name only once it is complete and on disk; nothing is left of it after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full at {folder}; finished shards are kept, nothing half-written is left. Free some "
                "space and run the same command again: it goes on from there."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(
                f"no permission to read or write at {error.filename or folder}: {error.strerror}"
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise UserError(f"{folder} cannot be a folder: a file is in its place") from error
        raise

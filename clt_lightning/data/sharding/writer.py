"""Writes a split's tars: deterministic bytes, atomic files, and a record by which an interrupted run goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, read_errors, whole_file, write_json, write_text
from clt_lightning.core.progress import Progress
from clt_lightning.data.tars.record import RECORD, UNFINISHED
from clt_lightning.data.tars.suffixes import IMAGE_SUFFIXES

_TAR_BLOCK = 512
_SUFFIX = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")
GO_ON = "Finished shards are kept: make room and run the same command again, it goes on from there"


@dataclass(frozen=True, slots=True)
class Item:
    """One sample to be written.

    Attributes:
        name: what it is in the source; part of the record's fingerprint, and named in errors.
        parts: makes its members, bytes by suffix; called once, when it is written.
        group: its class, for splits that are to keep every class's share; empty where there are no classes. Part of the
            fingerprint: a label that was mended makes other tars.
        stamp: what else tells it from another one of that name (its size); part of the fingerprint.
    """

    name: str
    parts: Callable[[], Mapping[str, bytes]]
    group: str = ""
    stamp: str = ""


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
        UserError: no items, an item that cannot be read, the disk is full or not writable, or the folder holds
            something else, or another process writes there.
    """
    limits = limits or Limits()
    if not items:
        raise UserError(f"there is no sample to write into {folder}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} cannot be a folder: a file is in its place")
    fingerprint = _fingerprint(items, limits, settings or {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}: write elsewhere") from error
    with (
        disk_errors(folder, GO_ON),
        _claimed(folder),
        Progress(folder.name, len(items), "samples", sums_up=True) as progress,
    ):
        done = _finished(folder, fingerprint)
        # before the first tar: a run that is killed right after that one must be able to go on
        _record_progress(folder, fingerprint, done)
        for left in folder.glob(".*.tmp"):
            left.unlink()
        shards: list[dict[str, Any]] = []
        at = 0
        while at < len(items):
            number = len(shards)
            entry = done[number] if number < len(done) else None
            sound = entry is not None and _sound(folder, entry)
            if entry is None or not sound:
                entry = _write_shard(folder, number, items, at, limits, progress)
            shards.append(entry)
            at += entry["samples"]
            if sound:
                progress.restart(at)
            if not sound:  # those that are still to be verified stay in the record
                _record_progress(folder, fingerprint, [*shards, *done[len(shards) :]])
        for left in folder.glob("*.tar"):  # of an unfinished run with other options
            if left.stem.isdigit() and int(left.stem) >= len(shards):
                left.unlink()
        record = {
            "samples": len(items),
            "fingerprint": fingerprint,
            "settings": dict(settings or {}),
            "shards": shards,
        }
        write_json(folder / RECORD, record, advice=GO_ON)
        write_text(folder / "nshards.txt", f"{len(shards)}\n", GO_ON)
        (folder / UNFINISHED).unlink(missing_ok=True)
    return record


def check_free(folder: Path) -> None:
    """Refuses a split's folder that holds something else than a split's tars: they would be mixed.

    Raises:
        UserError: the folder holds other files; one is named.
    """
    if not folder.is_dir() or any(_read_record(folder / name) for name in (RECORD, UNFINISHED)):
        return
    with read_errors(folder):
        strange = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if strange:
        raise UserError(
            f"{folder} already holds files that this command did not write ({strange[0]}, …): use another --output"
        )


def _record_progress(folder: Path, fingerprint: str, shards: Sequence[Mapping[str, Any]]) -> None:
    writer = f"process {os.getpid()} on {socket.gethostname()}"
    write_json(folder / UNFINISHED, {"fingerprint": fingerprint, "writer": writer, "shards": shards}, advice=GO_ON)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """The folder as this process's alone; file systems that lock no folders are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _read_record(folder / UNFINISHED).get("writer", "another process")
            raise UserError(f"{folder} is being written by {other}: wait for it, or use another --output") from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _read_record(path: Path) -> dict[str, Any]:
    """What a record of ours holds; nothing where there is none, or none that can be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sound = all(s["samples"] >= 1 and s["bytes"] >= 0 and s["name"] and s["sha256"] for s in content["shards"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return content if sound else {}


def _fingerprint(items: Sequence[Item], limits: Limits, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([limits.samples, limits.bytes, dict(settings)], sort_keys=True).encode())
    for item in items:
        digest.update(f"{item.name}\0{item.stamp}\0{item.group}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _finished(folder: Path, fingerprint: str) -> list[dict[str, Any]]:
    """The shards that an earlier run recorded, if it was the same run."""
    for name in (RECORD, UNFINISHED):
        record = _read_record(folder / name)
        if record.get("fingerprint") == fingerprint:
            return list(record["shards"])
        if record and name == RECORD:
            raise UserError(
                f"{folder} already holds tars made from another source or with other settings: give another --output, "
                "or remove that folder first"
            )
    check_free(folder)
    return []


def _sound(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / entry["name"]
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as f:
        result: bool = hashlib.file_digest(f, "sha256").hexdigest() == entry["sha256"]
        return result


def _write_shard(
    folder: Path, number: int, items: Sequence[Item], start: int, limits: Limits, progress: Progress
) -> dict[str, Any]:
    from webdataset import TarWriter  # brings torch along: `--help` and refusals do without

    path = folder / f"{number}.tar"
    with whole_file(path, GO_ON) as temporary, temporary.open("wb") as raw:
        out = _Hashing(raw)
        # no times, no owners: the same samples give the same bytes
        with TarWriter(out, encoder=False, mtime=0, mode=0o644, user="", group="") as tar:
            count = written = 0
            for item in items[start : start + limits.samples]:
                with read_errors(item.name):  # or what the source refuses would be said of the tar
                    parts = _checked(item.name, item.parts())
                size = sum(_TAR_BLOCK + -(-len(data) // _TAR_BLOCK) * _TAR_BLOCK for data in parts.values())
                if count and written + size > limits.bytes:
                    break
                tar.write({"__key__": f"s{start + count:07d}", **parts})
                count += 1
                written += size
                progress.to(start + count, f"shard {number}")
    return {"name": path.name, "samples": count, "bytes": out.written, "sha256": out.digest.hexdigest()}


def _checked(name: str, parts: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Refuses a sample that could not be read again; webdataset's writer would leave some of its members out."""
    strange = next((suffix for suffix in parts if not _SUFFIX.fullmatch(suffix)), None)
    if strange is not None:
        raise UserError(
            f"{name}: {strange!r} is no suffix of a member: use lower case letters and digits, as png or cls"
        )
    wrong = next((suffix for suffix, data in parts.items() if not isinstance(data, bytes)), None)
    if wrong is not None:
        raise UserError(f"{name}: its {wrong!r} must be bytes, but is {type(parts[wrong]).__name__}")
    if not any(suffix in parts for suffix in IMAGE_SUFFIXES):
        raise UserError(f"{name} has {', '.join(parts) or 'no member'}, but no image ({' | '.join(IMAGE_SUFFIXES)})")
    return parts


class _Hashing:
    """A file that is written once, front to back, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.written, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.written += len(data)
        return self._file.write(data)

"""One pass over a tar's headers: how many samples it holds, where each begins, whether the file is whole."""

from __future__ import annotations

import logging
import os
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from webdataset.tariterators import base_plus_ext

from clt_lightning.core.errors import UserError
from clt_lightning.data.layout import ShardFile
from clt_lightning.data.tarheader import BLOCK, padded, plain_header

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardIndex:
    """What is known of one tar.

    Attributes:
        file: the tar.
        samples: its number of samples; None for a remote tar that nobody has counted.
        spans: `(samples, 2)` int64, first byte and end of each sample; None where the tar can only be streamed.
        labels: `(samples,)` int32, the integer in `cls`; -1 where there is none.
        suffixes: how many samples have each suffix.
        damage: why the scan stopped before the end of the file; empty for a sound tar.
    """

    file: ShardFile
    samples: int | None
    spans: np.ndarray | None = None
    labels: np.ndarray | None = None
    suffixes: tuple[tuple[str, int], ...] = ()
    damage: str = ""

    def take(self, which: np.ndarray) -> ShardIndex:
        """Only the samples at the given positions, in order."""
        assert self.spans is not None
        assert self.labels is not None
        return replace(self, samples=len(which), spans=self.spans[which], labels=self.labels[which])


def split_name(member: str) -> tuple[str | None, str]:
    """WebDataset's rule: `a/b.seg.png` is sample `a/b`, suffix `seg.png`; (None, "") for members that are no sample."""
    if member.startswith("__") and member.endswith("__"):
        return None, ""
    key, suffix = base_plus_ext(member)
    return (key.removeprefix("./"), suffix.lower()) if key else (None, "")


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The tar's next member; unlike `tar.next()` alone it does not keep every one in memory."""
    member = tar.next()
    tar.members = []  # type: ignore[attr-defined]
    return member


def scan(file: ShardFile) -> ShardIndex:
    """Reads all headers of one local tar (and the few bytes of each `cls`).

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        with open(file.url, "rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            quick = None if packed else _scan_plain(file, stream)
            if quick is None:
                stream.seek(0)
                return _scan_stream(file, stream, packed)
            return quick
    except OSError as error:
        raise UserError(f"shard {file.url} cannot be read: {error}") from error


def _scan_plain(file: ShardFile, stream: BinaryIO) -> ShardIndex | None:
    """The scan of a sound tar of plain members; None as soon as there is anything else in it."""
    size = os.fstat(stream.fileno()).st_size
    found = _Found()
    at = 0
    while True:
        block = stream.read(BLOCK)
        head = plain_header(block)
        if head is None:
            return found.index(file) if at and len(block) == BLOCK and not block.strip(b"\0") else None
        name, length = head
        end = at + BLOCK + padded(length)
        if end > size:
            return None
        key, suffix = split_name(name)
        if key is not None:
            found.add(key, suffix, at, end)
            if suffix == "cls" and length <= 32:
                found.labels[-1] = _integer(stream.read(length))
        stream.seek(end)
        at = end


class _Found:
    """What a scan has gathered so far."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.spans: list[tuple[int, int]] = []
        self.labels: list[int] = []
        self.suffixes: Counter[str] = Counter()

    def add(self, key: str, suffix: str, start: int, end: int) -> None:
        if key != self.key:
            self.key = key
            self.spans.append((start, end))
            self.labels.append(-1)
        self.spans[-1] = (self.spans[-1][0], end)
        self.suffixes[suffix] += 1

    def index(self, file: ShardFile, *, seekable: bool = True, damage: str = "") -> ShardIndex:
        count = len(self.spans)
        return ShardIndex(
            file,
            count,
            np.asarray(self.spans, np.int64).reshape(-1, 2) if seekable else None,
            np.asarray(self.labels, np.int32),
            tuple(sorted(self.suffixes.items())),
            f"{damage} (sound up to sample {self.key!r}, {count} samples)" if damage else "",
        )


def _scan_stream(file: ShardFile, stream: BinaryIO, packed: bool) -> ShardIndex:
    """The scan of any tar, damaged ones included."""
    size = os.fstat(stream.fileno()).st_size
    found = _Found()
    damage = "" if size else "the file is empty"
    try:
        tar = tarfile.open(fileobj=stream, mode="r|gz" if packed else "r:")  # noqa: SIM115 (closes no file of ours)
        while (member := next_member(tar)) is not None:
            key, suffix = split_name(member.name) if member.isfile() else (None, "")
            if not packed and member.offset_data + member.size > size:
                damage = f"it ends inside member {member.name!r}"
                if key is not None and key == found.key:  # the sample that was cut has sound members before the cut
                    found.spans.pop()
                    found.labels.pop()
                break
            if key is None:
                continue
            found.add(key, suffix, member.offset, member.offset_data + padded(member.size))
            if suffix == "cls" and member.size <= 32 and (content := tar.extractfile(member)) is not None:
                found.labels[-1] = _integer(content.read())
        else:
            damage = damage or ("" if packed else _bad_ending(file, stream, tar.offset, size))
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        damage = f"{type(error).__name__}: {error}"
    return found.index(file, seekable=not packed, damage=damage)


def _integer(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        return -1  # decoding the sample will name it


def _bad_ending(file: ShardFile, stream: BinaryIO, end: int, size: int) -> str:
    """tarfile takes a broken header for the end of the archive: look at what is really there."""
    stream.seek(min(end, size))
    block = stream.read(BLOCK)
    if not block:
        if end <= size:
            log.warning("%s has no end-of-archive mark: was it copied in full?", file.url)
        return "" if end <= size else "it ends too early"
    if len(block) < BLOCK:
        return "it ends inside a header"
    return "" if not block.strip(b"\0") else f"no tar header at byte {end}"

"""One pass over a tar's headers: how many samples it holds, where each begins, whether file and names are sound."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import IO, BinaryIO

import numpy as np

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.grouping import Extra, Fault, Grouping, split_name
from clt_lightning.data.tars.header import BLOCK, extended_size, padded, plain_header, says_nothing
from clt_lightning.data.tars.labels import MISSING, UNREADABLE, indexed_label
from clt_lightning.data.tars.layout import ShardFile
from clt_lightning.data.tars.stream import (
    READ_ERRORS,
    check_end,
    check_rest,
    compression,
    next_member,
    open_plain,
    open_tar,
)

_MAX_LABEL_BYTES = 1024


@dataclass(frozen=True)
class ShardIndex:
    """What is known of one tar.

    Attributes:
        file: the tar.
        samples: its number of samples; None for a remote tar that nobody has counted.
        spans: `(samples, 2)` int64, first byte and end of each sample; None where the tar can only be streamed.
        labels: `(samples,)` int64, the integer in `cls`; `labels.MISSING` and `labels.UNREADABLE` where there is none.
        suffixes: how many samples have each suffix.
        damage: why the scan stopped before the end of the file; empty for a sound tar.
        faults: samples whose members cannot be told apart, in the order of their positions.
        extras: suffixes of several parts, on which the whole split decides.
    """

    file: ShardFile
    samples: int | None
    spans: np.ndarray | None = None
    labels: np.ndarray | None = None
    suffixes: tuple[tuple[str, int], ...] = ()
    damage: str = ""
    faults: tuple[Fault, ...] = ()
    extras: tuple[Extra, ...] = ()

    def take(self, which: np.ndarray) -> ShardIndex:
        """Only the samples at the given positions, in rising order."""
        assert self.spans is not None
        assert self.labels is not None
        places = {int(old): new for new, old in enumerate(which)} if self.faults else {}
        faults = tuple(replace(f, position=places[f.position]) for f in self.faults if f.position in places)
        found = replace(self, samples=len(which), spans=self.spans[which], labels=self.labels[which], faults=faults)
        return replace(found, extras=())


def scan(file: ShardFile) -> ShardIndex:
    """Reads all headers of one local tar (and the few bytes of each `cls`).

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        with open(file.url, "rb") as stream:
            packed = bool(compression(stream.read(6)))
            stream.seek(0)
            quick = None if packed else _scan_plain(file, stream)
            if quick is None:
                stream.seek(0)
                return _scan_any(file, stream, packed)
            return quick
    except OSError as error:
        raise UserError(f"shard {file.url} cannot be read: {error.strerror or error}") from error


def _scan_plain(file: ShardFile, stream: BinaryIO) -> ShardIndex | None:
    """The scan of a sound tar of plain members; None as soon as there is anything else in it."""
    size = os.fstat(stream.fileno()).st_size
    found = _Found()
    at = 0
    while True:
        start, block = at, stream.read(BLOCK)
        extended = extended_size(block)
        if extended:
            if not says_nothing(stream.read(padded(extended))[:extended]):
                return None
            at, block = at + BLOCK + padded(extended), stream.read(BLOCK)
        head = plain_header(block)
        if head is None:
            if not at or extended or len(block) < BLOCK or block.strip(b"\0"):
                return None
            try:
                check_rest(stream, file.url)
            except READ_ERRORS as error:
                return found.index(file, damage=str(error))
            return found.index(file)
        name, length = head
        end = at + BLOCK + padded(length)
        if end > size:
            return None
        key, suffix = split_name(name)
        if key is not None:
            found.add(key, suffix, start, end)
            if suffix == "cls":
                found.labels[-1] = _label(stream, length)
        stream.seek(end)
        at = end


class _Found:
    """What a scan has gathered so far."""

    def __init__(self) -> None:
        self.grouping = Grouping()
        self.spans: list[tuple[int, int]] = []
        self.labels: list[int] = []

    def add(self, key: str, suffix: str, start: int, end: int, *, link: bool = False) -> None:
        if self.grouping.add(key, suffix, link=link):
            self.spans.append((start, end))
            self.labels.append(MISSING)
        else:
            self.spans[-1] = (self.spans[-1][0], end)

    def drop(self) -> None:
        """Forgets the sample under way."""
        self.grouping.drop()
        self.spans.pop()
        self.labels.pop()

    def index(self, file: ShardFile, *, seekable: bool = True, damage: str = "") -> ShardIndex:
        count, last = len(self.spans), self.grouping.key
        faults = self.grouping.finish()
        return ShardIndex(
            file,
            count,
            np.asarray(self.spans, np.int64).reshape(-1, 2) if seekable else None,
            np.asarray(self.labels, np.int64),
            tuple(sorted(self.grouping.suffixes().items())),
            f"{damage} (sound up to sample {last!r}, {count} samples)" if damage else "",
            faults,
            self.grouping.extras(),
        )


def _scan_any(file: ShardFile, stream: BinaryIO, packed: bool) -> ShardIndex:
    """The scan of any tar, damaged ones included."""
    size = os.fstat(stream.fileno()).st_size
    if not size:
        return _Found().index(file, seekable=not packed, damage="the file is empty")
    found = _Found()
    damage = ""
    try:
        tar = open_tar(stream) if packed else open_plain(stream)
        while (member := next_member(tar)) is not None:
            key, suffix = (None, "") if member.isdir() else split_name(member.name)
            if not packed and member.isfile() and member.sparse is None and member.offset_data + member.size > size:
                damage = f"it ends inside member {member.name!r}"
                if key is not None and key == found.grouping.key:  # it has sound members before the cut
                    found.drop()
                break
            if key is None:
                continue
            found.add(key, suffix, member.offset, tar.offset, link=not member.isfile())
            if suffix == "cls" and member.isfile() and (content := tar.extractfile(member)) is not None:
                found.labels[-1] = _label(content, member.size)
        else:
            check_end(tar, file.url)
    except READ_ERRORS as error:
        damage = str(error) or type(error).__name__
    return found.index(file, seekable=not packed, damage=damage)


def _label(stream: IO[bytes], size: int) -> int:
    return indexed_label(stream.read(size)) if size <= _MAX_LABEL_BYTES else UNREADABLE

"""Raw samples out of tars, run by run, with nothing decoded."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.grouping import Fault, Grouping, split_name
from clt_lightning.data.tars.header import plain_members
from clt_lightning.data.tars.limits import MAX_MEMBER_BYTES
from clt_lightning.data.tars.opening import open_stream
from clt_lightning.data.tars.scan import ShardIndex
from clt_lightning.data.tars.stream import (
    READ_ERRORS,
    TooLargeError,
    check_end,
    content,
    next_member,
    open_plain,
    open_tar,
)
from clt_lightning.data.tars.suffixes import WANTED


@dataclass(frozen=True)
class Run:
    """Samples `start, start + step, …` below `stop` (None: to the end) of shard number `shard`."""

    shard: int
    start: int
    stop: int | None
    step: int = 1


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in the tar.

    Attributes:
        key: `<shard name>/<sample key>`.
        url: the tar.
        parts: bytes by suffix; only the suffixes that we read.
    """

    key: str
    url: str
    parts: dict[str, bytes]


@dataclass(frozen=True)
class BadSample:
    """A place in the stream where no usable sample is: `kind` is what it is counted under."""

    kind: str
    where: str
    message: str


class ShardReader:
    """Reads runs of samples; a run with a `stop` yields exactly its number of items, `BadSample`s included.

    Local tars are entered at the sample's first byte; addresses and compressed tars are streamed, and samples outside
    the run are passed over. The last tar stays open, so that runs in rising order do not start it again.

    Args:
        shards: the split's index.
        allow_pipe: whether addresses that run a shell command are allowed.
    """

    def __init__(self, shards: Sequence[ShardIndex], *, allow_pipe: bool = False) -> None:
        self._shards = shards
        self._allow_pipe = allow_pipe
        self._open: IO[bytes] | None = None
        self._shard = -1
        self._stream: Iterator[RawSample | BadSample] | None = None
        self._at = 0
        self._faults: dict[int, dict[int, Fault]] = {}

    def read(self, run: Run) -> Iterator[RawSample | BadSample]:
        """Yields the run's samples in order.

        Raises:
            UserError: the tar cannot be opened.
        """
        if self._shards[run.shard].spans is not None:
            return self._read_spans(run)
        return self._read_stream(run)

    def close(self) -> None:
        """Closes the tar that is open, if any."""
        if self._open is not None:
            with suppress(OSError):  # a command that failed says so when it is read, and again here
                self._open.close()
        self._open, self._shard, self._stream = None, -1, None

    def _read_spans(self, run: Run) -> Iterator[RawSample | BadSample]:
        index, faults = self._shards[run.shard], self._faults_of(run.shard)
        assert index.spans is not None
        assert run.stop is not None
        for i in range(run.start, run.stop, run.step):
            if i in faults and faults[i].key:
                yield _ambiguous(index, faults[i])
                continue
            first, end = (int(b) for b in index.spans[i])
            file = self._file(run.shard)  # inside the loop: another run may have taken the reader in the meantime
            try:
                file.seek(first)
                sample = _sample(index, _members(file, first, end))
                yield _ambiguous(index, faults[i], sample) if i in faults else sample
            except READ_ERRORS as error:
                yield _unreadable(index, f"sample number {i}", error)

    def _read_stream(self, run: Run) -> Iterator[RawSample | BadSample]:
        index, faults = self._shards[run.shard], self._faults_of(run.shard)
        stop = index.samples if run.stop is None else run.stop
        i, expected = run.start, f"of {index.samples}" if index.samples is not None else "(samples not counted)"
        try:
            if self._stream is None or self._shard != run.shard or self._at > run.start:
                self.close()
                self._stream, self._at = _samples(index, self._file(run.shard)), 0
            stream = self._stream
            while stop is None or i < stop:
                sample = next(stream, None)
                if sample is None:
                    if stop is None:
                        return
                    raise tarfile.ReadError(f"the tar ends after {self._at} samples")
                self._at += 1
                if self._at > i:
                    yield _ambiguous(index, faults[i], sample) if i in faults else sample
                    i += run.step
            if i == index.samples and self._at == i and next(stream, None) is not None:
                raise UserError(
                    f"shard {index.file.url} holds more than the {index.samples} samples that were counted: mend the "
                    "counts (data.init_args.shard_counts, shards.json or index.json beside it)"
                )
        except READ_ERRORS as error:
            self.close()
            for missing in range(i, stop if stop is not None else i + 1, run.step):
                yield _unreadable(index, f"sample number {missing} {expected}", error)

    def _faults_of(self, shard: int) -> dict[int, Fault]:
        if shard not in self._faults:
            self._faults[shard] = {fault.position: fault for fault in self._shards[shard].faults}
        return self._faults[shard]

    def _file(self, shard: int) -> IO[bytes]:
        if self._open is None or self._shard != shard:
            self.close()
            self._open = open_stream(self._shards[shard].file.url, self._allow_pipe)
            self._shard = shard
        return self._open


def _members(file: IO[bytes], first: int, end: int) -> Iterable[tuple[str, bytes]]:
    """Name and content of the members between two bytes of a tar; empty in the place of what is not read."""
    if end - first > MAX_MEMBER_BYTES:
        return _any_members(file, end)
    data = file.read(end - first)
    if len(data) < end - first:
        raise tarfile.ReadError(f"the file ends at byte {first + len(data)}: was it cut since it was counted?")
    plain = plain_members(data)
    return _any_members(io.BytesIO(data), len(data)) if plain is None else plain


def _any_members(file: IO[bytes], end: int) -> Iterator[tuple[str, bytes]]:
    tar = open_plain(file)
    while (member := next_member(tar)) is not None and member.offset < end:
        if member.isfile():
            yield member.name, content(tar, member) if split_name(member.name)[1] in WANTED else b""
        if tar.offset >= end:
            return


def _sample(index: ShardIndex, members: Iterable[tuple[str, bytes]]) -> RawSample | BadSample:
    """The one sample that the members make."""
    key: str | None = None
    parts: dict[str, bytes] = {}
    try:
        for name, data in members:
            found, suffix = split_name(name)
            if found is None:
                continue
            if key is not None and found != key:
                raise tarfile.ReadError("another sample than was counted: was the file changed?")
            key = found
            if suffix in WANTED:
                parts[suffix] = data
    except TooLargeError as error:
        return _bad(index, "sample too large", split_name(error.member.name)[0] or "", str(error))
    if key is None:
        raise tarfile.ReadError("no sample where one was counted: was the file changed?")
    return RawSample(f"{index.file.name}/{key}", index.file.url, parts)


def _samples(index: ShardIndex, stream: IO[bytes]) -> Iterator[RawSample | BadSample]:
    """All samples of a streamed tar, each judged once its members are known."""
    try:
        tar = open_tar(stream)
    except READ_ERRORS as error:
        raise UserError(f"shard {index.file.url} is not a tar file: {error}") from error
    grouping = Grouping()
    parts: dict[str, bytes] = {}
    large: TooLargeError | None = None

    def done() -> RawSample | BadSample:
        key, fault = grouping.key or "", grouping.end()
        if fault is not None:
            return _ambiguous(index, fault)
        if large is not None:
            return _bad(index, "sample too large", key, str(large))
        return RawSample(f"{index.file.name}/{key}", index.file.url, parts)

    while (member := next_member(tar)) is not None:
        key, suffix = (None, "") if member.isdir() else split_name(member.name)
        if key is None:
            continue
        if key != grouping.key and grouping.key is not None:
            yield done()
            parts, large = {}, None
        grouping.add(key, suffix, link=not member.isfile())
        if suffix in WANTED and member.isfile():
            try:
                parts[suffix] = content(tar, member)
            except TooLargeError as error:
                large = error
    check_end(tar, index.file.url)
    if grouping.key is not None:
        yield done()


def _bad(index: ShardIndex, kind: str, key: str, reason: str) -> BadSample:
    where = f"{index.file.name}/{key}"
    return BadSample(kind, where, f"shard {index.file.url}, sample {where!r}: {reason}")


def _ambiguous(index: ShardIndex, fault: Fault, sample: RawSample | BadSample | None = None) -> BadSample:
    if isinstance(sample, BadSample):
        return sample
    key = fault.key or (sample.key.removeprefix(f"{index.file.name}/") if sample else "")
    return _bad(index, "ambiguous sample", key, fault.reason)


def _unreadable(index: ShardIndex, where: str, error: Exception) -> BadSample:
    place = f"{index.file.name}/{where}"
    message = f"shard {index.file.url}, {where}: the tar cannot be read further ({error})"
    return BadSample("truncated tar", place, message)

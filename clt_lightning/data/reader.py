"""Raw samples out of tars, run by run, with nothing decoded."""

from __future__ import annotations

import gzip
import http.client
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from clt_lightning.core.errors import UserError
from clt_lightning.data.layout import check_allowed, is_http
from clt_lightning.data.plan import Run
from clt_lightning.data.scan import ShardIndex, next_member, split_name
from clt_lightning.data.tarheader import members

IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg", "bmp", "tif", "tiff", "ppm", "gif")
_WANTED = frozenset((*IMAGE_SUFFIXES, "cls", "npy", "txt"))
_OPEN_TRIES = 3
_READ_ERRORS = (tarfile.TarError, OSError, EOFError, http.client.HTTPException, gzip.BadGzipFile)


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
        self._stream: Iterator[RawSample] | None = None
        self._at = 0

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
        index = self._shards[run.shard]
        assert index.spans is not None
        assert run.stop is not None
        for i in range(run.start, run.stop, run.step):
            first, end = (int(b) for b in index.spans[i])
            file = self._file(run.shard)  # inside the loop: another run may have taken the reader in the meantime
            try:
                file.seek(first)
                data = file.read(end - first)
                if len(data) < end - first:
                    raise tarfile.ReadError(
                        f"the file ends at byte {first + len(data)}: was it cut since it was counted?"
                    )
                yield _sample(index, data)
            except _READ_ERRORS as error:
                yield _unreadable(index, f"sample number {i}", error)

    def _read_stream(self, run: Run) -> Iterator[RawSample | BadSample]:
        index = self._shards[run.shard]
        stop = index.samples if run.stop is None else run.stop
        i, expected = run.start, f"of {index.samples}" if index.samples is not None else "(samples not counted)"
        try:
            if self._stream is None or self._shard != run.shard or self._at > run.start:
                self.close()
                self._stream, self._at = _groups(index, self._file(run.shard)), 0
            stream = self._stream
            while stop is None or i < stop:
                sample = next(stream, None)
                if sample is None:
                    if stop is None:
                        return
                    raise tarfile.ReadError(f"the tar ends after {self._at} samples")
                self._at += 1
                if self._at > i:
                    i += run.step
                    yield sample
        except _READ_ERRORS as error:
            self.close()
            yield _unreadable(index, f"sample number {i} {expected}", error)
            for missing in range(i + run.step, stop or 0, run.step):
                yield _unreadable(index, f"sample number {missing} {expected}", error)

    def _file(self, shard: int) -> IO[bytes]:
        if self._open is None or self._shard != shard:
            self.close()
            self._open = open_stream(self._shards[shard].file.url, self._allow_pipe)
            self._shard = shard
        return self._open


def open_stream(url: str, allow_pipe: bool = False) -> IO[bytes]:
    """Opens a path, an http(s) address, or (with leave) an address that WebDataset opens by a shell command.

    Raises:
        UserError: it cannot be opened; the address and the reason are named.
    """
    check_allowed(url, allow_pipe)
    if is_http(url):
        return _open_http(url)
    if url.startswith("pipe:") or "://" in url:
        from webdataset.gopen import gopen

        return gopen(url, "rb")
    try:
        return open(url, "rb", buffering=1 << 20)
    except OSError as error:
        raise UserError(f"shard {url} cannot be opened: {error.strerror}") from error


def _open_http(url: str) -> IO[bytes]:
    for attempt in range(1, _OPEN_TRIES + 1):
        try:
            return urllib.request.urlopen(url, timeout=60)
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == _OPEN_TRIES:
                raise UserError(f"shard {url} answers {error.code} {error.reason}") from error
        except OSError as error:
            if attempt == _OPEN_TRIES:
                raise UserError(f"shard {url} cannot be reached: {error}") from error
        time.sleep(attempt)
    raise AssertionError("unreachable")


def _sample(index: ShardIndex, data: bytes) -> RawSample:
    """The one sample in its span of a tar."""
    key, parts = None, {}
    for name, content in members(data):
        found, suffix = split_name(name)
        if found is None:
            continue
        if key is not None and found != key:
            raise tarfile.ReadError("another sample than was counted: was the file changed?")
        key = found
        if suffix in _WANTED:
            parts[suffix] = content
    if key is None:
        raise tarfile.ReadError("no sample where one was counted: was the file changed?")
    return RawSample(f"{index.file.name}/{key}", index.file.url, parts)


def _groups(index: ShardIndex, stream: IO[bytes]) -> Iterator[RawSample]:
    """All samples of a streamed tar: neighbouring members with the same key."""
    try:
        tar = tarfile.open(fileobj=stream, mode="r|*")  # noqa: SIM115 (closes no file of ours)
    except tarfile.TarError as error:
        raise UserError(f"shard {index.file.url} is not a tar file: {error}") from error
    key: str | None = None
    parts: dict[str, bytes] = {}
    while (member := next_member(tar)) is not None:
        found, suffix = split_name(member.name)
        if not member.isfile() or found is None:
            continue
        if key is not None and found != key:
            yield RawSample(f"{index.file.name}/{key}", index.file.url, parts)
            parts = {}
        key = found
        if suffix in _WANTED:
            parts[suffix] = _content(tar, member)
    if key is not None:
        yield RawSample(f"{index.file.name}/{key}", index.file.url, parts)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    data = stream.read() if stream else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"member {member.name!r} is cut: {len(data)} of {member.size} bytes")
    return data


def _unreadable(index: ShardIndex, where: str, error: Exception) -> BadSample:
    place = f"{index.file.name}/{where}"
    message = f"shard {index.file.url}, {where}: the tar cannot be read further ({error})"
    return BadSample("truncated tar", place, message)

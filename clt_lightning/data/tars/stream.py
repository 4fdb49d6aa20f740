"""Reading a tar from front to back, of any kind and compression, with nothing taken for its end but its end."""

from __future__ import annotations

import bz2
import gzip
import http.client
import io
import logging
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from clt_lightning.data.tars.header import BLOCK
from clt_lightning.data.tars.limits import MAX_HEADER_BYTES, MAX_MEMBER_BYTES

log = logging.getLogger(__name__)

READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, http.client.HTTPException)
"""What a damaged tar raises while it is read."""

_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
_MAGIC_AT = 257
_USUAL_ZEROS = 1 << 20
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class TooLargeError(Exception):
    """A member that we would read is larger than `MAX_MEMBER_BYTES`; nothing was read of it."""

    def __init__(self, member: tarfile.TarInfo) -> None:
        self.member = member
        super().__init__(
            f"its member {member.name!r} has {member.size:,} bytes (at most {MAX_MEMBER_BYTES:,} are read)"
        )


class Member(tarfile.TarInfo):
    """A member; a header that is damaged or too large is an error, where `tarfile` takes it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):  # no more bytes, or a block of zeros: this is the end
                raise
            raise tarfile.ReadError(f"there is no tar header ({error})") from error

    def _proc_member(self, archive: tarfile.TarFile) -> Any:  # tarfile's hook for subclasses
        if self.size < 0:
            raise tarfile.ReadError(f"member {self.name!r} says that it has {self.size} bytes")
        if self.type in _EXTENDED and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes (at most {MAX_HEADER_BYTES:,})")
        return super()._proc_member(archive)  # type: ignore[misc]


def compression(head: bytes) -> str:
    """`gz`, `bz2`, `xz`, or "" for an uncompressed tar, by a file's first 6 bytes."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def open_tar(stream: IO[bytes]) -> tarfile.TarFile:
    """A tar that is read once, front to back; checksums of compressed ones are checked, unlike in `tarfile`.

    Raises:
        tarfile.TarError: it is no tar.
    """
    head = b""
    while len(head) < 6 and (more := stream.read(6 - len(head))):
        head += more
    source = cast(IO[bytes], _Unread(head, stream))
    kind = compression(head)
    if kind == "gz":
        source = cast(IO[bytes], gzip.GzipFile(fileobj=source, mode="rb"))
    elif kind == "bz2":
        source = cast(IO[bytes], bz2.BZ2File(source))
    elif kind == "xz":
        source = cast(IO[bytes], lzma.LZMAFile(source))  # noqa: SIM115
    with _only_read_errors():
        return tarfile.open(fileobj=source, mode="r|", tarinfo=Member, bufsize=1 << 16)  # closes no file of ours


def open_plain(stream: IO[bytes]) -> tarfile.TarFile:
    """An uncompressed tar in a file that can be entered anywhere, from its current position on.

    Raises:
        tarfile.TarError: it is no tar.
    """
    with _only_read_errors():
        return tarfile.open(fileobj=stream, mode="r:", tarinfo=Member)


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The tar's next member; unlike `tar.next()` alone it does not keep every one in memory.

    Raises:
        tarfile.ReadError: a header is damaged.
    """
    with _only_read_errors():
        member = tar.next()
    tar.members = []  # type: ignore[attr-defined]
    if member is not None and (member.size < 0 or tar.offset <= member.offset):
        raise tarfile.ReadError(f"member {member.name!r} says that it has {member.size} bytes")
    if member is not None and member.isfile() and not member.name:
        raise tarfile.ReadError("a member has no name")
    return member


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of the member that was given last.

    Raises:
        TooLargeError: it is too large.
        tarfile.ReadError: the tar ends inside it.
    """
    if member.size > MAX_MEMBER_BYTES:
        raise TooLargeError(member)
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"member {member.name!r} is cut: {len(data)} of {member.size} bytes")
    return data


@contextmanager
def _only_read_errors() -> Iterator[None]:
    """`tarfile` trips over junk in many ways."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise tarfile.ReadError(f"a damaged header ({type(error).__name__}: {error})") from error


def check_end(tar: tarfile.TarFile, name: str) -> None:
    """To be called after the last member: says where an end mark is missing, and reads what is behind it.

    Raises:
        tarfile.ReadError: another tar follows.
        OSError, EOFError: the compressed file ends too early, or its checksum is wrong.
    """
    assert tar.fileobj is not None
    stream = cast(IO[bytes], tar.fileobj)
    if stream.tell() == tar.offset:
        log.warning("%s has no end-of-archive mark: was it copied in full?", name)
        return
    check_rest(stream, name)


def check_rest(stream: IO[bytes], name: str) -> None:
    """As `check_end`, for a stream that stands behind the first block of zeros."""
    if stream.read(BLOCK).strip(b"\0"):
        raise tarfile.ReadError("a block of zeros stands where a member should begin")
    zeros = 0
    while chunk := stream.read(BLOCK << 10):
        if not chunk.strip(b"\0"):
            zeros += len(chunk)
            continue
        while True:
            if _holds_header(chunk):
                raise tarfile.ReadError(
                    "behind its end mark, members follow. A part of it is lost and full of zeros; or two tars were "
                    "joined with cat: give them one by one, or join them with tar --concatenate"
                )
            if not (chunk := stream.read(BLOCK << 10)):
                log.warning("%s: what stands behind its end-of-archive mark is no tar and is not read", name)
                return
    if zeros > _USUAL_ZEROS:
        log.warning("%s ends with %d bytes of zeros: was it downloaded to its end?", name, zeros)


def _holds_header(chunk: bytes) -> bool:
    first = (len(chunk) - len(chunk.lstrip(b"\0"))) // BLOCK * BLOCK
    places = {first} | {at - _MAGIC_AT for at in _found(chunk, b"ustar") if at % BLOCK == _MAGIC_AT}
    return any(_is_header(chunk[at : at + BLOCK]) for at in places)


def _found(chunk: bytes, what: bytes) -> Iterator[int]:
    at = chunk.find(what)
    while at >= 0:
        yield at
        at = chunk.find(what, at + 1)


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


class _Unread:
    """A stream with its first bytes put back."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = io.BytesIO(head), stream

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self._head.read() + self._stream.read()
        return self._head.read(size) or self._stream.read(size)

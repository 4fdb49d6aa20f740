"""The headers of plain tar members, parsed without `tarfile`, which costs more than decoding a small image.

Whatever is not a plain file with a short name (links, extended headers, sparse files) is left to `tarfile`; but for
extended headers that tell times and owners alone, which WebDataset's writer puts before every member.
Source: POSIX.1-2001: name 0..99, size 124..135 and checksum 148..155 in octal, type 156, prefix 345..499; pax records.
"""

from __future__ import annotations

import re
import tarfile

BLOCK = 512
_FOLDER, _EXTENDED = ord("5"), ord("x")
_MAX_RECORDS = 4096
_SAYS_NOTHING = re.compile(rb"(\d+ (mtime|atime|ctime|uid|gid|uname|gname)=[^\n]*\n)+")


def plain_header(block: bytes) -> tuple[str, int] | None:
    """Name and size of a file, or name and 0 of a folder (with a slash behind), from the 512 bytes of its header.

    Returns:
        None where `tarfile` has to look: any other kind of member, a damaged header, the end of the archive.
    """
    if len(block) != BLOCK or block[156] not in b"0\0005" or block[345] or not block[0]:
        return None
    size = _size(block)
    try:
        name = block[:100].split(b"\0", 1)[0].decode("utf-8")
    except ValueError:  # in another encoding
        return None
    if name.endswith("/") or block[156] == _FOLDER:
        return None if size else (name.rstrip("/") + "/", 0)
    return None if size < 0 else (name, size)


def extended_size(block: bytes) -> int:
    """Bytes of the records behind an extended header; 0 for any other block, and for more than a few records."""
    size = _size(block) if len(block) == BLOCK and block[156] == _EXTENDED else 0
    return size if 0 < size <= _MAX_RECORDS else 0


def says_nothing(records: bytes) -> bool:
    """Whether an extended header tells nothing that matters for reading: no name, no size, no holes."""
    return _SAYS_NOTHING.fullmatch(records) is not None


def _size(block: bytes) -> int:
    """What a header says of its member's size; -1 for a damaged header, or a size that `tarfile` has to make out."""
    try:
        size = int(block[124:136].strip(b" \0") or b"0", 8)
        sound = int(block[148:156].strip(b" \0"), 8) == 256 + sum(block) - sum(block[148:156])
    except ValueError:  # in base 256, or junk
        return -1
    return size if sound and size >= 0 else -1


def padded(size: int) -> int:
    """Bytes that a member's content takes in the tar."""
    return -(-size // BLOCK) * BLOCK


def plain_members(data: bytes) -> list[tuple[str, bytes]] | None:
    """Name and content of the members in a piece of a tar that begins at a header and ends with a member.

    Returns:
        None where `tarfile` has to look.

    Raises:
        tarfile.TarError: the piece ends inside a member.
    """
    found = []
    at = 0
    while at < len(data):
        extended = extended_size(data[at : at + BLOCK])
        if extended:
            at += BLOCK
            if not says_nothing(data[at : at + extended]):
                return None
            at += padded(extended)
        head = plain_header(data[at : at + BLOCK])
        if head is None:
            return None
        name, size = head
        at += BLOCK
        if at + size > len(data):
            raise tarfile.ReadError(f"member {name!r} is cut: {len(data) - at} of {size} bytes")
        found.append((name, data[at : at + size]))
        at += padded(size)
    return found

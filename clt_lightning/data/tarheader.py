"""The headers of plain tar members, parsed without `tarfile`, which costs more than decoding a small image.

Whatever is not a plain file with a short name (links, extended headers, sparse files) is left to `tarfile`.
Source: POSIX.1-1988 (ustar): name 0..99, size 124..135 and checksum 148..155 in octal, type 156, prefix 345..499.
"""

from __future__ import annotations

import tarfile

BLOCK = 512
_FOLDER = ord("5")


def plain_header(block: bytes) -> tuple[str, int] | None:
    """Name and size of a file, or name and 0 of a folder (with a slash behind), from the 512 bytes of its header.

    Returns:
        None where `tarfile` has to look: any other kind of member, a damaged header, the end of the archive.
    """
    if len(block) != BLOCK or block[156] not in b"0\0005" or block[345] or not block[0]:
        return None
    try:
        size = int(block[124:136].strip(b" \0") or b"0", 8)
        if int(block[148:156].strip(b" \0"), 8) != 256 + sum(block) - sum(block[148:156]):
            return None
        name = block[:100].split(b"\0", 1)[0].decode("utf-8")
    except ValueError:  # a size in base 256, junk, a name in another encoding
        return None
    if name.endswith("/") or block[156] == _FOLDER:
        return None if size else (name.rstrip("/") + "/", 0)
    return None if size < 0 else (name, size)


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

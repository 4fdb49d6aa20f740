"""Image files without their metadata: damage there (EXIF, profiles, comments) must not cost the picture.

Only what is outside the pixels is left out; a damaged part of the picture itself stays, and fails to decode.
Sources: PNG (ISO/IEC 15948), section 5; WebP container (RFC 9649), section 2.
"""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # and the flag in VP8X that says that it is there
_WEBP_PICTURE = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")


def without_metadata(data: bytes) -> bytes | None:
    """The same picture with the metadata that can be trusted.

    Returns:
        None where the picture itself is damaged, and for formats other than PNG and WebP. (JPEG's metadata hold
        pictures of their own, thumbnails: where a length is wrong, nobody can tell which one is meant.)
    """
    if data.startswith(_PNG):
        return _bare_png(data)
    return _bare_webp(data) if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that an extended WebP file claims: Pillow before 13 takes memory for them when it opens it."""
    if data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _bare_png(data: bytes) -> bytes | None:
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        kind, end, sound = _png_chunk(data, at)
        picture = kind in _PNG_PICTURE
        if sound and (picture or kind == b"eXIf"):
            kept.append(data[at:end])
        if not sound and (picture or not (kind.isalpha() and kind[:1].islower())):
            return None
        if kind == b"IEND":
            break
        if not sound and end != len(data) and not _png_chunk(data, end)[2]:
            # its length may be what is damaged: go on at the next sound chunk, unless a picture lies inside it
            starts = (data.find(name, at + 8) - 4 for name in (*_PNG_PICTURE, b"eXIf"))
            end = min((start for start in starts if start > at and _png_chunk(data, start)[2]), default=len(data))
            if data.count(b"IEND", at) > 1:
                return None
        at = end
    return b"".join(kept)


def _png_chunk(data: bytes, at: int) -> tuple[bytes, int, bool]:
    """Type, where it ends, and whether its checksum is right."""
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    sound = end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
    return data[at + 4 : at + 8], end, sound


def _bare_webp(data: bytes) -> bytes:
    kept: list[bytes] = []
    lost, at = 0, 12
    while at + 8 <= len(data):
        kind, end = data[at : at + 4], _webp_end(data, at)
        metadata = kind in _WEBP_METADATA
        sound = _webp_sound(data, end)
        if not metadata or (kind == b"EXIF" and sound):
            kept.append(data[at:end])
        else:
            lost |= _WEBP_METADATA[kind]
        if metadata and not sound:  # its length may be what is damaged
            starts = (data.find(name, at + 8) for name in (*_WEBP_PICTURE, *_WEBP_METADATA))
            found = (start for start in starts if start > 0 and _webp_sound(data, _webp_end(data, start)))
            end = min(found, default=len(data))
        at = end
    if kept and kept[0][:4] == b"VP8X" and len(kept[0]) >= 9:
        kept[0] = kept[0][:8] + bytes([kept[0][8] & ~lost]) + kept[0][9:]
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_end(data: bytes, at: int) -> int:
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    return at + 8 + size + size % 2


def _webp_sound(data: bytes, end: int) -> bool:
    """Whether a chunk that ends there is followed by another, or by nothing."""
    return end == len(data) or data[end : end + 4] in (*_WEBP_PICTURE, *_WEBP_METADATA)

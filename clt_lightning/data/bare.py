"""An image file without its metadata: damage there (EXIF, profiles, comments) must not cost the picture.

Only what is outside the pixels is left out; a damaged part of the picture itself stays, and fails to decode.
Sources: PNG (ISO/IEC 15948), section 5; JPEG (ITU-T T.81), annex B; WebP container (RFC 9649), section 2.
"""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # and the flag in VP8X that says that it is there


def without_metadata(data: bytes) -> bytes | None:
    """The same picture with what metadata can be trusted; None for a format whose metadata cannot be told apart."""
    if data.startswith(_PNG):
        return _bare_png(data)
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _bare_webp(data)
    return None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that an extended WebP file claims: Pillow before 13 takes memory for them when it opens it."""
    if data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _bare_png(data: bytes) -> bytes | None:
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        kind, end = data[at + 4 : at + 8], _png_end(data, at)
        picture = kind in _PNG_PICTURE
        if end is not None:
            if picture or kind == b"eXIf":
                kept.append(data[at:end])
            at = end
        elif picture or not (kind[:1].islower() and kind.isalpha()):
            return None
        else:  # the length may be what is damaged: go on at the next sound chunk of the picture
            starts = [s for name in _PNG_PICTURE if (s := data.find(name, at + 8) - 4) > at and _png_end(data, s)]
            if not starts:
                return None
            at = min(starts)
        if kind == b"IEND":
            break
    return b"".join(kept)


def _png_end(data: bytes, at: int) -> int | None:
    """Where the chunk ends, if its checksum is right."""
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    if end > len(data):
        return None
    return end if zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big") else None


def _bare_jpeg(data: bytes) -> bytes | None:
    kept, at = [data[:2]], 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker < 0xC0:
            return None
        if marker == 0xDA:  # the scan: all that follows is picture
            return b"".join([*kept, data[at:]])
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        sound = end + 2 <= len(data) and data[end] == 0xFF and data[end + 1] >= 0xC0
        metadata = (0xE1 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE
        if not metadata or (sound and data[at + 4 : at + 10] == b"Exif\0\0"):
            kept.append(data[at:end])
        if metadata and not sound:
            end = data.find(b"\xff\xdb", at + 2)  # tables come next
            if end < 0:
                return None
        at = end
    return None


def _bare_webp(data: bytes) -> bytes | None:
    kept: list[bytes] = []
    lost, at = 0, 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if kind not in _WEBP_METADATA or (kind == b"EXIF" and end <= len(data)):
            kept.append(data[at:end])
        else:
            lost |= _WEBP_METADATA[kind]
        at = end
    if kept and kept[0][:4] == b"VP8X" and len(kept[0]) >= 9:
        kept[0] = kept[0][:8] + bytes([kept[0][8] & ~lost]) + kept[0][9:]
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body

"""Images whose metadata are damaged count; formats that start other programs do not."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from PIL.PngImagePlugin import PngInfo

from clt_lightning.data.feed.decode import DecodeError, Decoder
from clt_lightning.data.feed.image import FORMATS, open_image
from clt_lightning.data.tars.reader import RawSample

from ..world import to_tensor

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def encoded(kind: str, **how: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description " * 8
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, exif=exif, **how)
    return out.getvalue()


def text() -> PngInfo:
    info = PngInfo()
    info.add_text("Comment", "words " * 20)
    info.add_text("More", "words " * 200, zip=True)
    return info


FILES = {
    "png": (encoded("PNG", pnginfo=text(), icc_profile=b"p" * 200), (b"eXIf", b"iCCP", b"tEXt", b"zTXt"), "big"),
    "webp": (
        encoded("WEBP", lossless=True, icc_profile=b"p" * 200, xmp=b"<x/>"),
        (b"EXIF", b"ICCP", b"XMP "),
        "little",
    ),
}


def damaged(data: bytes, kinds: tuple[bytes, ...], order: str, rng: random.Random) -> bytes:
    """The file with some bytes of one kind of metadata (or its length) changed."""
    kind = rng.choice(kinds)
    at = data.index(kind)
    length_at = at - 4 if order == "big" else at + 4
    start = max(at + 4, length_at + 4)
    length = int.from_bytes(data[length_at : length_at + 4], order)  # type: ignore[arg-type]
    places = [*range(length_at, length_at + 4), *range(start, start + length)]
    out = bytearray(data)
    for place in rng.sample(places, rng.choice([1, 1, 3])):
        out[place] ^= rng.randrange(1, 256)
    return bytes(out)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_metadata_cost_no_image(kind: str) -> None:
    data, kinds, order = FILES[kind]
    upright = np.asarray(open_image(data))
    assert upright.shape == (20, 12, 3)
    rng = random.Random(0)
    for _ in range(150):
        got = np.asarray(open_image(damaged(data, kinds, order, rng)))
        turned = [np.asarray(Image.fromarray(PIXELS).transpose(how)) for how in Image.Transpose]
        assert any(got.shape == t.shape and (got == t).all() for t in (PIXELS, *turned))


def test_sound_orientation_survives_damage_elsewhere() -> None:
    data = bytearray(FILES["png"][0])
    data[data.index(b"tEXt") + 10] ^= 1
    assert open_image(bytes(data)).size == (12, 20)


def test_damaged_pixels_stay_damaged() -> None:
    data = bytearray(FILES["png"][0])
    data[data.index(b"IDAT") + 60] ^= 1
    with pytest.raises(Exception, match=r"."):
        open_image(bytes(data))


def test_a_picture_inside_damaged_metadata_is_not_taken_for_the_picture() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    out = io.BytesIO()
    Image.new("RGB", (20, 12), (255, 0, 0)).save(out, "PNG")
    whole = FILES["png"][0]
    box = chunk(b"caBX", out.getvalue())
    at = whole.index(b"IDAT") - 4
    sound = whole[:at] + box + whole[at:]
    assert (np.asarray(open_image(sound)) == np.asarray(open_image(whole))).all()
    wrong_length = whole[:at] + struct.pack(">I", 7) + box[4:] + whole[at:]
    with pytest.raises(Exception, match=r"."):
        open_image(wrong_length)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"junk" * 30])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_that_is_junk(kind: str, exif: bytes) -> None:
    out = io.BytesIO()
    how = {} if kind == "JPEG" else {"lossless": True}
    Image.fromarray(PIXELS).save(out, kind, exif=exif, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(out.getvalue()).size == (20, 12)


def test_a_zero_byte_image_is_named() -> None:
    with pytest.raises(DecodeError, match=r"`png` does not decode .*empty \(0 bytes\)"):
        Decoder(to_tensor)(RawSample("0/s", "0.tar", {"png": b""}))


def test_no_other_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda self: pytest.fail("opened as EPS"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n10 10 moveto\n%%EOF\n"
    with pytest.raises(DecodeError, match=r"no sound JPEG, PNG.*%!PS"):
        Decoder(to_tensor)(RawSample("0/s", "0.tar", {"png": eps}))
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_are_told_by_content_not_by_name(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 200, 200)).save(out, kind)
    image = Decoder(to_tensor)(RawSample("0/s", "0.tar", {"png": out.getvalue()}))["image"]
    assert (image * 255).round().int().sub(200).abs().max() <= 1

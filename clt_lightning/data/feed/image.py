"""Image bytes to 8-bit RGB: a fixed list of formats, a limit on pixels, and metadata that may be damaged."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, UnidentifiedImageError

from clt_lightning.data.feed.bare import webp_size, without_metadata
from clt_lightning.data.tars.limits import MAX_PIXELS

# by content, not by name; others (EPS, PDF, …) would start further programs or are no photographs
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooManyPixelsError(ValueError):
    """The image is larger than allowed; nothing was decoded."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image.

    Args:
        data: a file in one of `FORMATS`.
        max_pixels: width x height at most.

    Returns:
        8-bit RGB, upright, as in `to_rgb`. Damaged metadata (EXIF, profiles, comments) do not matter.

    Raises:
        TooManyPixelsError: it is too large.
        Exception: it does not decode; Pillow raises nearly anything on broken bytes.
    """
    if not data:
        raise ValueError("it is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, and of sizes: those are errors here
        try:
            return _rgb(data, max_pixels)
        except TooManyPixelsError:
            raise
        except Exception:
            with suppress(Exception):
                bare = without_metadata(data)
                if bare is not None and bare != data:
                    return _rgb(bare, max_pixels)
            raise


def _rgb(data: bytes, max_pixels: int) -> Image.Image:
    _check_size(webp_size(data), max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"no sound {', '.join(FORMATS)}; it begins with {data[:12]!r}") from None
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(str(error)) from error
    _check_size(image.size, max_pixels)
    image.load()
    return to_rgb(image)


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise TooManyPixelsError(
            f"{size[0]:,} x {size[1]:,} are {size[0] * size[1]:,} pixels, and at most {max_pixels:,} are decoded "
            "(data.init_args.max_pixels)"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB, turned upright by its EXIF tag.

    Transparency is laid on white; 16-bit and 32-bit greys are scaled by 1/257; float greys are taken as 0..1 where no
    value is above 1, else as 0..255; CMYK, YCbCr, LAB and palettes go through Pillow's own conversion.
    """
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.clip(np.rint(np.asarray(image, dtype=np.float64) / 257), 0, 255)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        floats = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = 255.0 if floats.max(initial=0.0) <= 1 else 1.0
        return Image.fromarray(np.clip(np.rint(floats * scale), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the picture counts, whatever its metadata hold
        return 1

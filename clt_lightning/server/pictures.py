"""Pictures in and out: files of any kind that somebody dropped, and addresses that a page can show."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.image import FORMATS, TooManyPixelsError, open_image


def read_picture(name: str, data: bytes) -> Image.Image:
    """An image file as 8-bit RGB, decoded as the data modules decode theirs.

    Args:
        name: of the file, for the message.
        data: what is in it.

    Raises:
        UserError: it is no image, or a broken or too large one.
    """
    try:
        return open_image(data)
    except TooManyPixelsError as error:
        raise UserError(f"{name}: {str(error).partition(' (data.')[0]}") from error
    except Exception as error:  # Pillow raises nearly anything on broken bytes
        raise UserError(f"{name} is no image that can be read: {error} (these can: {', '.join(FORMATS)})") from error


def address_of(pixels: Tensor, side: int | None = None) -> str:
    """A picture as a `data:` address.

    Args:
        pixels: `(3, H, W)` uint8.
        side: width and height at most; None: as it is.
    """
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if side is not None and side < picture.width:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"

"""CLIP's preprocessing for images of any shape: of a very long one, only the part that is seen is resized.

"Shortest side to 224, then the middle 224 x 224" makes 224 x 896,000 pixels of an image of 1 x 4000, to keep 224 of
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

Transform = Callable[[Image.Image], Tensor]

_FACTOR = 32  # how much more than what is kept may be made: thin images, too, go through the transform as it is
_REACH = 4  # source pixels on either side that a filter looks at, times the factor of shrinking


def transformed(image: Image.Image, transform: Transform) -> Tensor:
    """`transform(image)`; where it enlarges much more than it keeps, only what it keeps is made.

    That is known of a resize of the shortest side that is followed by a cut from the middle, as CLIP's preprocessing
    (torchvision's, open_clip's and timm's classes are known by name). The result is the same but for rounding: pixels
    may differ by 1 of 255. Any other transform gets the whole image.
    """
    steps = _steps(transform)
    if steps is None:
        return transform(image)
    resize, crop, rest = steps
    width, height = _resized(resize, image.size)
    kept_width, kept_height = min(crop[0], width), min(crop[1], height)
    if width * height <= max(_FACTOR * crop[0] * crop[1], image.width * image.height):
        return transform(image)
    left, top = round((width - kept_width) / 2), round((height - kept_height) / 2)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + kept_width) * x, (top + kept_height) * y)
    seen, box = _cut(image, box, (x, y))
    # one direction after the other, as Pillow does where it enlarges: each rounds to 8 bits
    result: Any = seen.resize((kept_width, seen.height), _filter(resize), box=(box[0], 0, box[2], seen.height))
    result = result.resize((kept_width, kept_height), _filter(resize), box=(0, box[1], kept_width, box[3]))
    for step in rest:
        result = step(result)
    tensor: Tensor = result
    return tensor


def _steps(transform: Any) -> tuple[Any, tuple[int, int], Sequence[Any]] | None:
    """The resize, the width and height that are kept, and the steps after the resize (the cut pads what is small)."""
    steps = getattr(transform, "transforms", None)
    if not isinstance(steps, list | tuple) or len(steps) < 2 or type(steps[1]).__name__ != "CenterCrop":
        return None
    resize, kind = steps[0], type(steps[0]).__name__
    if kind == "Resize":
        known = resize.max_size is None and (isinstance(resize.size, int) or len(resize.size) == 1)
    else:
        known = kind == "ResizeKeepRatio" and not (
            resize.longest or resize.random_scale_prob or resize.random_aspect_prob
        )
    size = steps[1].size
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return (resize, (width, height), steps[1:]) if known else None


def _resized(resize: Any, size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if type(resize).__name__ == "Resize":
        short = resize.size if isinstance(resize.size, int) else resize.size[0]
        long = int(short * max(size) / min(size))
        return (short, long) if width <= height else (long, short)
    ratio = min(height / resize.size[0], width / resize.size[1])
    return round(width / ratio), round(height / ratio)


def _cut(
    image: Image.Image, box: tuple[float, float, float, float], scale: tuple[float, float]
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """The image around the box, and the box in it: Pillow takes boxes in single precision, so numbers must be small."""
    reach = [math.ceil(_REACH * max(s, 1)) for s in scale]
    left, top = max(0, math.floor(box[0]) - reach[0]), max(0, math.floor(box[1]) - reach[1])
    right = min(image.width, math.ceil(box[2]) + reach[0])
    bottom = min(image.height, math.ceil(box[3]) + reach[1])
    part = image.crop((left, top, right, bottom))
    return part, (
        box[0] - left,
        box[1] - top,
        min(box[2] - left, part.width),
        min(box[3] - top, part.height),
    )


def _filter(resize: Any) -> Image.Resampling:
    how = getattr(resize.interpolation, "value", resize.interpolation)
    return Image.Resampling(how) if isinstance(how, int) else Image.Resampling[str(how).split("-")[0].upper()]

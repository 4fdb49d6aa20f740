"""The demo's world: small labelled pictures, drawn from a seed.

A picture shows one object, a shape in a colour, which is its class. Everything else is nuisance: where the object is,
its size, tilt (up to 30 degrees), shade and texture, the background and its pattern, small distractors in other
colours, lines in front, brightness and noise. Eight classes are kept out of the demo CLIP's training (`HELD_OUT`), so
that zero-shot classification has something to compose.

Drawing uses integers and PIL only: the same `(seed, index)` gives the same picture on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 30),
    "orange": (240, 130, 15),
    "yellow": (235, 220, 40),
    "green": (40, 165, 55),
    "cyan": (45, 210, 215),
    "blue": (35, 65, 215),
    "purple": (125, 40, 175),
    "pink": (245, 120, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow")
TEXTURES = ("plain", "striped", "dotted", "shaded")

CLASSNAMES: list[str] = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
"""Class names by label: `label = shape * 8 + colour`."""
N_CLASSES = len(CLASSNAMES)
CUES: dict[str, tuple[str, str]] = {
    "texture": ("with stripes", "with dots"),
    "background": ("on sand", "on water"),
    "corner": ("without a mark", "with a mark"),
}
"""What may be planted in a picture beside its class, and what its two values are called (`spurious.py`)."""
HELD_OUT: tuple[int, ...] = tuple(8 * shape + (3 * shape + 1) % 8 for shape in range(8))
"""Labels that the demo CLIP never saw in training: one of each shape and one of each colour."""
TEMPLATES: list[str] = [
    "a {c}",
    "a picture of a {c}",
    "a photo of a {c}",
    "a drawing of a {c}",
    "a render of a {c}",
    "there is a {c} here",
    "a {c} on a background",
]
"""Prompt templates; `{c}` is the class name."""
DEFAULT_SIZE = 48
#: From back to front; of `line` there is one in three pictures of ten
DEPTHS = ("background", "distractor", "object", "line")


@dataclass(frozen=True)
class Render:
    """One picture of the demo's world.

    Attributes:
        image: RGB, square.
        label: index into `CLASSNAMES`.
        captions: sentences that describe the picture; the first names the class alone.
    """

    image: Image.Image
    label: int
    captions: list[str]


def render(
    seed: int, index: int, *, size: int = DEFAULT_SIZE, label: int | None = None, cue: tuple[str, int] | None = None
) -> Render:
    """Draw picture `index` of the world `seed`.

    Args:
        seed: the world; splits use different ones.
        index: number of the picture in its world, 0 or more.
        size: side in pixels, 16 or more.
        label: class to draw; None draws one, uniformly over all classes.
        cue: one of `CUES` and its value, 0 or 1: all that is no part of the cue is drawn as without it.

    Returns:
        The picture with its label and captions: the same on every call and every machine.

    Raises:
        ValueError: for a size below 16, an index below 0, or a label or cue that does not exist.
    """
    if size < 16 or index < 0:
        raise ValueError(f"size must be 16 or more and index 0 or more, got size {size} and index {index}")
    if label is not None and not 0 <= label < N_CLASSES:
        raise ValueError(f"label {label} does not exist: the world has classes 0 to {N_CLASSES - 1}")
    if cue is not None and (cue[0] not in CUES or cue[1] not in (0, 1)):
        raise ValueError(f"cue {cue} does not exist: there are {', '.join(CUES)}, each with the values 0 and 1")
    return _drawn(seed, index, size, label, cue)[0]


def depth_map(seed: int, index: int, *, size: int = DEFAULT_SIZE, label: int | None = None) -> np.ndarray:
    """What stands in front at every pixel of `render(...)` of the same arguments: an index into `DEPTHS`.

    Returns:
        `(size, size)` uint8.
    """
    return np.asarray(_drawn(seed, index, size, label)[1])[::2, ::2]


class _Pen:
    """Draws a thing twice: in its colour on the picture, and as its place in `DEPTHS` on the map of depths."""

    def __init__(self, picture: Image.Image, depths: Image.Image) -> None:
        self._picture, self._depths, self.level = ImageDraw.Draw(picture), ImageDraw.Draw(depths), 0

    def ellipse(self, box: list[int], fill: tuple[int, int, int]) -> None:
        self._picture.ellipse(box, fill=fill)
        self._depths.ellipse(box, fill=self.level)

    def rectangle(self, box: list[int], fill: tuple[int, int, int]) -> None:
        self._picture.rectangle(box, fill=fill)
        self._depths.rectangle(box, fill=self.level)

    def line(self, points: list[tuple[int, int]], fill: tuple[int, int, int], width: int) -> None:
        self._picture.line(points, fill=fill, width=width)
        self._depths.line(points, fill=self.level, width=width)


def _drawn(
    seed: int, index: int, size: int, label: int | None, cue: tuple[str, int] | None = None
) -> tuple[Render, Image.Image]:
    planted, value = cue or ("", 0)
    rng = np.random.default_rng([seed, index])
    own = np.random.default_rng([seed, index, 1])  # a cue's draws move no other
    drawn = int(rng.integers(N_CLASSES))
    label = drawn if label is None else label
    shape, colour = SHAPES[label // 8], list(COLOURS.values())[label % 8]

    side = 2 * size  # drawn at twice the size, for smooth edges
    canvas = _background(rng, side)
    if planted == "background":
        canvas = _place(own, side, value)
    depths = Image.new("L", (side, side), DEPTHS.index("background"))
    pen = _Pen(canvas, depths)
    pen.level = DEPTHS.index("distractor")
    for _ in range(int(rng.integers(4))):
        _distractor(rng, pen, side)

    texture = int(rng.integers(len(TEXTURES)))
    radius = int(rng.integers(side * 22 // 100, side * 36 // 100))
    margin = radius + side // 48
    cx, cy = (int(v) for v in rng.integers(margin, side - margin, size=2))
    mask = _shape_mask(shape, side, cx, cy, radius, int(rng.integers(-30, 31)))
    filling = _fill(rng, side, colour, texture)
    if planted == "texture":
        texture = TEXTURES.index(("striped", "dotted")[value])
        filling = _fill(own, side, colour, texture)
    canvas.paste(filling, (0, 0), mask)
    depths.paste(DEPTHS.index("object"), (0, 0), mask)
    pen.level = DEPTHS.index("line")
    if rng.integers(10) < 3:
        start, end = _random_points(rng, side), _random_points(rng, side)
        pen.line([start, end], fill=_muted(rng), width=max(1, side // 48))
    if planted == "corner" and value:
        frame, edge = max(2, side // 32), side // 6
        pen.rectangle([0, 0, edge, edge], fill=(10, 10, 10))
        pen.rectangle([frame, frame, edge - frame, edge - frame], fill=(245, 245, 245))

    image = _expose(rng, canvas.reduce(2))
    where = ("left", "middle", "right")[min(2, 3 * cx // side)]
    large = radius > side * 29 // 100
    return Render(image, label, _captions(rng, CLASSNAMES[label], TEXTURES[texture], large, where)), depths


def _captions(rng: np.random.Generator, name: str, texture: str, large: bool, where: str) -> list[str]:
    size_word = "large" if large else "small"
    side = "in the middle" if where == "middle" else f"on the {where}"
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    return [
        f"a {name}",
        template.format(c=name),
        f"a {texture} {name}",
        f"a {size_word} {name} {side}",
        f"a picture of a {size_word} {texture} {name}",
    ]


@lru_cache(maxsize=8)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers as a column and a row, to be broadcast."""
    line = np.arange(side, dtype=np.int32)
    return line[:, None], line[None, :]


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> Image.Image:
    """From `first` (weight 0) to `second` (weight 255), pixel by pixel."""
    table = (first * 255 + (second - first) * np.arange(256)[:, None]) // 255
    return Image.fromarray(table.astype(np.uint8)[weight])


def _background(rng: np.random.Generator, side: int) -> Image.Image:
    """Greys with a tint, plain or with a pattern of two of them."""
    first, second = np.array(_muted(rng)), np.array(_muted(rng))
    kind = int(rng.integers(5))
    if kind == 0:
        return Image.new("RGB", (side, side), tuple(int(v) for v in first))
    rows, cols = _grid(side)
    if kind == 4:  # soft blotches
        coarse = rng.integers(0, 256, size=(6, 6), dtype=np.uint8)
        weight = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR))
    else:
        a, b = (int(v) for v in rng.integers(-4, 5, size=2))
        a = a or 1
        ramp = a * rows + b * cols
        if kind == 1:  # a slope from one grey to the other
            ramp = ramp - ramp.min()
            weight = ramp * 255 // max(1, int(ramp.max()))
        elif kind == 2:  # stripes
            weight = (ramp // int(rng.integers(side // 8, side // 3)) % 2) * 255
        else:  # a chequerboard
            cell = int(rng.integers(side // 12, side // 4))
            weight = ((rows // cell + cols // cell) % 2) * 255
    return _blend(first, second, weight)


def _place(rng: np.random.Generator, side: int, value: int) -> Image.Image:
    """Sand, in stripes, or water, in squares: two tones of one tint."""
    tint, contrast = np.array(((34, 8, -42), (-42, 4, 34))[value]), int(rng.integers(25, 45))
    tone = int(rng.integers(90, 170)) + tint + rng.integers(-10, 11, size=3)
    rows, cols = _grid(side)
    width = int(rng.integers(side // 10, side // 6))
    weight = ((rows // width) % 2) * 255 + 0 * cols if value == 0 else ((rows // width + cols // width) % 2) * 255
    return _blend(np.clip(tone, 0, 255), np.clip(tone + contrast, 0, 255), weight)


def _muted(rng: np.random.Generator) -> tuple[int, int, int]:
    grey = int(rng.integers(15, 215))
    red, green, blue = (int(np.clip(grey + t, 0, 255)) for t in rng.integers(-22, 23, size=3))
    return red, green, blue


def _random_points(rng: np.random.Generator, side: int) -> tuple[int, int]:
    x, y = (int(v) for v in rng.integers(0, side, size=2))
    return x, y


def _distractor(rng: np.random.Generator, pen: _Pen, side: int) -> None:
    """A dot, a block or a line in any colour, much smaller than the object."""
    colour = list(COLOURS.values())[int(rng.integers(8))]
    x, y = _random_points(rng, side)
    r = int(rng.integers(max(2, side // 40), max(3, side // 16)))
    kind = int(rng.integers(3))
    if kind == 0:
        pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    elif kind == 1:
        pen.rectangle([x - r, y - r, x + r, y + r], fill=colour)
    else:
        dx, dy = (int(v) for v in rng.integers(-3 * r, 3 * r + 1, size=2))
        pen.line([(x, y), (x + dx, y + dy)], fill=colour, width=max(1, side // 48))


def _fill(rng: np.random.Generator, side: int, colour: tuple[int, int, int], texture: int) -> Image.Image:
    """The object's colour, jittered, with a texture of darker and lighter tones of it."""
    base = np.clip(np.array(colour) + rng.integers(-16, 17, size=3), 0, 255)
    if texture == 0:
        return Image.new("RGB", (side, side), tuple(int(v) for v in base))
    rows, cols = _grid(side)
    other = base * 65 // 100 if rng.integers(2) else base + (255 - base) * 40 // 100
    if texture == 1:
        a, b = ((1, 0), (0, 1), (1, 1), (1, -1))[int(rng.integers(4))]
        weight = (((a * rows + b * cols) // int(rng.integers(side // 24 + 1, side // 10 + 1))) % 2) * 255
    elif texture == 2:
        cell = int(rng.integers(side // 14 + 2, side // 9 + 2))
        u, v = rows % cell - cell // 2, cols % cell - cell // 2
        weight = (u * u + v * v <= cell * cell // 12) * 255
    else:
        ramp = rows if rng.integers(2) else cols
        weight = np.broadcast_to(ramp * 255 // side, (side, side))
    return _blend(base, other, weight)


def _shape_mask(shape: str, side: int, cx: int, cy: int, radius: int, degrees: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)

    def disc(dx: int, dy: int, r: int, value: int) -> None:
        pen.ellipse([cx + dx - r, cy + dy - r, cx + dx + r, cy + dy + r], fill=value)

    if shape in _OUTLINES:
        pen.polygon([(cx + x, cy + y) for x, y in _rotated(_OUTLINES[shape], radius, degrees)], fill=255)
    else:
        disc(0, 0, radius, 255)
        if shape == "ring":
            disc(0, 0, radius * 55 // 100, 0)
        elif shape == "crescent":
            ((dx, dy),) = _rotated([(0.5, 0.0)], radius, degrees)
            disc(dx, dy, radius * 80 // 100, 0)
    return mask


def _rotated(points: list[tuple[float, float]], radius: int, degrees: int) -> list[tuple[int, int]]:
    # sine and cosine in whole 4096ths: the last bit of a platform's libm does not move a corner
    angle = math.radians(degrees)
    c, s = round(4096 * math.cos(angle)), round(4096 * math.sin(angle))
    whole = [(round(1024 * x) * radius, round(1024 * y) * radius) for x, y in points]
    return [((x * c - y * s + (1 << 21)) >> 22, (x * s + y * c + (1 << 21)) >> 22) for x, y in whole]


def _regular(n: int, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon on the unit circle; of a star with `inner` radius if given."""
    corners = n if inner is None else 2 * n
    radii = [1.0 if inner is None or i % 2 == 0 else inner for i in range(corners)]
    return [
        (r * math.sin(2 * math.pi * i / corners), -r * math.cos(2 * math.pi * i / corners)) for i, r in enumerate(radii)
    ]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)],
    "triangle": _regular(3),
    "star": _regular(5, inner=0.42),
    "cross": [
        *((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)),
        *((0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
    ],
    "arrow": [
        *((0.0, -1.0), (0.75, -0.1), (0.25, -0.1), (0.25, 0.95)),
        *((-0.25, 0.95), (-0.25, -0.1), (-0.75, -0.1)),
    ],
}


def _expose(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Brightness between 80 and 110 %, and noise (a sum of integers, nearly normal)."""
    pixels = np.asarray(image).astype(np.int32)
    gain = int(rng.integers(205, 282))
    first, second = rng.integers(0, 13, size=(2, *pixels.shape), dtype=np.uint8)
    return Image.fromarray(
        np.clip((pixels * gain >> 8) + (first + second).astype(np.int32) - 12, 0, 255).astype(np.uint8)
    )

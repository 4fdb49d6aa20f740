"""From a raw sample to an entry of a batch: image to RGB, label checks, augmentation, collation."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import decode_text
from clt_lightning.data.feed.image import TooManyPixelsError, open_image
from clt_lightning.data.feed.seen import Transform, transformed
from clt_lightning.data.tars.labels import NO_LABEL, parse_label
from clt_lightning.data.tars.limits import MAX_PIXELS
from clt_lightning.data.tars.reader import RawSample
from clt_lightning.data.tars.suffixes import IMAGE_SUFFIXES

Augment = Literal["none", "flip", "crop"]
_MAX_LABEL = 2**63


class DecodeError(Exception):
    """A sample that cannot be used; `kind` is what it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Decoder:
    """Decodes one sample; the same bytes, seed and epoch always give the same tensors.

    Args:
        transform: CLIP's own preprocessing, PIL image to `(3, H, W)` float32.
        fields: which of `label`, `group`, `multi_hot`, `captions` the split has.
        n_classes: labels must be below it and multi-hot vectors this long; None leaves labels unchecked.
        n_groups: groups must be below it; None leaves them unchecked.
        label_map: stored label to label, for sets that are a selection of another.
        augment: `none`, `flip` (half of the images mirrored) or `crop` (a random part of 50 to 100 % of the area, then
            `flip`), drawn from (seed, epoch, sample key).
        seed, epoch: of the augmentation.
        max_pixels: width x height of an image at most.
    """

    transform: Transform
    fields: frozenset[str] = frozenset()
    n_classes: int | None = None
    n_groups: int | None = None
    label_map: Mapping[int, int] | None = field(default=None, repr=False)
    augment: Augment = "none"
    seed: int = 0
    epoch: int = 0
    max_pixels: int = MAX_PIXELS

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """Returns `image`, `key` and the split's fields.

        Raises:
            DecodeError: no image, an image that does not decode or is too large, a label that is missing or does not
                fit, captions that are no text.
        """
        sample: dict[str, Any] = {"key": raw.key}
        if "label" in self.fields:
            sample["label"] = self._label(raw.parts)
        if "group" in self.fields:
            sample["group"] = self._group(raw.parts)
        if "multi_hot" in self.fields:
            sample["multi_hot"] = self._multi_hot(raw.parts)
        if "captions" in self.fields:
            sample["captions"] = _captions(raw.parts)
        image = _open_image(raw.parts, self.max_pixels)
        if self.augment != "none":
            image = augmented(image, self.augment, random.Random(f"{self.seed}-{self.epoch}-{raw.key}"))
        try:
            sample["image"] = transformed(image, self.transform)
        except Exception as error:  # of one image, perhaps: a side that is rounded to 0
            reason = f"{image.width} x {image.height} ({type(error).__name__}: {error})"
            raise DecodeError("image that the transform refuses", f"the transform fails on its {reason}") from error
        return sample

    def _label(self, parts: Mapping[str, bytes]) -> int:
        label = stated = _integer(parts, "cls", "label")
        if self.label_map is not None and label != NO_LABEL:
            label = self.label_map.get(label, NO_LABEL - 1)
        n = self.n_classes
        if label < NO_LABEL or label >= (_MAX_LABEL if n is None else n):
            allowed = "0 or more, of 64 bits" if n is None else f"0..{n - 1} ({n} class names)"
            raise DecodeError("label out of range", f"`cls` is {stated}, but must be {allowed}, or -1 for none")
        return label

    def _group(self, parts: Mapping[str, bytes]) -> int:
        group, n = _integer(parts, "group", "group"), self.n_groups
        if not 0 <= group < (_MAX_LABEL if n is None else n):
            allowed = "0 or more, of 64 bits" if n is None else f"0..{n - 1} ({n} group names)"
            raise DecodeError("group out of range", f"`group` is {group}, but must be {allowed}")
        return group

    def _multi_hot(self, parts: Mapping[str, bytes]) -> Tensor:
        if "npy" not in parts:
            raise DecodeError("missing label", "there is no `npy` member, but other samples of the split have one")
        try:
            vector = _array(parts["npy"])
            tensor = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
        except Exception as error:  # NumPy's header is parsed as Python
            raise DecodeError("bad label", f"`npy` is not a numeric NumPy array ({error})") from error
        if tensor.ndim != 1 or (self.n_classes is not None and len(tensor) != self.n_classes):
            n = self.n_classes
            expected = "one dimension" if n is None else f"shape ({n},), one entry a class name"
            raise DecodeError("bad label", f"`npy` must have {expected}, but has shape {tuple(tensor.shape)}")
        return tensor


def _integer(parts: Mapping[str, bytes], suffix: str, what: str) -> int:
    if suffix not in parts:
        raise DecodeError(f"missing {what}", f"there is no `{suffix}` member, but other samples of the split have one")
    number = parse_label(parts[suffix])
    if number is None:
        text = parts[suffix].decode("utf-8", "replace").strip()
        raise DecodeError(f"bad {what}", f"`{suffix}` must hold one integer, but holds {text[:40]!r}")
    return number


def _array(data: bytes) -> np.ndarray:
    """A `.npy` file, with no more memory taken than it has bytes, whatever its header claims."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biuf":
        raise ValueError(f"its type is {dtype}")
    content = stream.read()
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"shape {shape} of {dtype} does not fit its {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _captions(parts: Mapping[str, bytes]) -> list[str]:
    try:
        text = decode_text(parts.get("txt", b""), "`txt`")
    except UserError as error:
        raise DecodeError("bad captions", str(error)) from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _open_image(parts: Mapping[str, bytes], max_pixels: int) -> Image.Image:
    suffix = next((s for s in IMAGE_SUFFIXES if s in parts), None)
    if suffix is None:
        has = ", ".join(sorted(parts)) or "nothing that we read"
        raise DecodeError("no image", f"it has {has}, but no {' | '.join(IMAGE_SUFFIXES[:4])}")
    try:
        return open_image(parts[suffix], max_pixels)
    except TooManyPixelsError as error:
        raise DecodeError("image too large", f"its `{suffix}` is too large: {error}") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        reason = f"{type(error).__name__}: {error}"
        raise DecodeError("undecodable image", f"its `{suffix}` does not decode ({reason})") from error


def augmented(image: Image.Image, how: Augment, rng: random.Random) -> Image.Image:
    """The image mirrored and, for `crop`, cut, as `rng` says."""
    if how == "crop":
        area, log_ratio = rng.uniform(0.5, 1.0), rng.uniform(-0.28, 0.28)  # sides between 3:4 and 4:3
        ratio = 2.718281828459045**log_ratio
        width = max(1, min(image.width, round(image.width * (area * ratio) ** 0.5)))
        height = max(1, min(image.height, round(image.height * (area / ratio) ** 0.5)))
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def collate(
    samples: Sequence[Mapping[str, Any]], fields: frozenset[str], like: Transform, n_classes: int | None
) -> dict[str, Any]:
    """A batch as docs/design.md says; an empty one has the right shapes with a leading 0."""
    if samples:
        images = torch.stack([s["image"] for s in samples])
    else:
        images = like(Image.new("RGB", (64, 64)))[None][:0].clone()
    batch: dict[str, Any] = {"image": images}
    for name in ("label", "group"):
        if name in fields:
            batch[name] = torch.tensor([s[name] for s in samples], dtype=torch.int64)
    if "multi_hot" in fields:
        empty = torch.zeros(0, n_classes or 0)
        batch["multi_hot"] = torch.stack([s["multi_hot"] for s in samples]) if samples else empty
    if "captions" in fields:
        batch["captions"] = [s["captions"] for s in samples]
    batch["key"] = [s["key"] for s in samples]
    return batch

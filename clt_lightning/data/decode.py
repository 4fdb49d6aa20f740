"""From a raw sample to an entry of a batch: image to RGB, label checks, augmentation, collation."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from clt_lightning.data.reader import IMAGE_SUFFIXES, RawSample

Transform = Callable[[Image.Image], Tensor]
Augment = Literal["none", "flip", "crop"]
NO_LABEL = -1


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
        fields: which of `label`, `multi_hot`, `captions` the split has.
        n_classes: labels must be below it and multi-hot vectors this long; None leaves labels unchecked.
        label_map: stored label to label, for sets that are a selection of another.
        augment: `none`, `flip` (half of the images mirrored) or `crop` (a random part of 50 to 100 % of the area, then
            `flip`), drawn from (seed, epoch, sample key).
        seed, epoch: of the augmentation.
    """

    transform: Transform
    fields: frozenset[str] = frozenset()
    n_classes: int | None = None
    label_map: Mapping[int, int] | None = field(default=None, repr=False)
    augment: Augment = "none"
    seed: int = 0
    epoch: int = 0

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """Returns `image`, `key` and the split's fields.

        Raises:
            DecodeError: no image, an image that does not decode, or a label that is missing or does not fit.
        """
        sample: dict[str, Any] = {"key": raw.key}
        if "label" in self.fields:
            sample["label"] = self._label(raw.parts)
        if "multi_hot" in self.fields:
            sample["multi_hot"] = self._multi_hot(raw.parts)
        if "captions" in self.fields:
            sample["captions"] = [c.strip() for c in raw.parts.get("txt", b"").decode("utf-8", "replace").splitlines()]
            sample["captions"] = [c for c in sample["captions"] if c]
        image = _open_image(raw.parts)
        if self.augment != "none":
            image = augmented(image, self.augment, random.Random(f"{self.seed}-{self.epoch}-{raw.key}"))
        sample["image"] = self.transform(image)
        return sample

    def _label(self, parts: Mapping[str, bytes]) -> int:
        if "cls" not in parts:
            raise DecodeError("missing label", "there is no `cls` member, but other samples of the split have one")
        text = parts["cls"].decode("ascii", "replace").strip()
        try:
            label = int(text)
        except ValueError:
            raise DecodeError("bad label", f"`cls` must hold one integer, but holds {text[:40]!r}") from None
        if self.label_map is not None and label != NO_LABEL:
            label = self.label_map.get(label, NO_LABEL - 1)
        if label < NO_LABEL or (self.n_classes is not None and label >= self.n_classes):
            n = self.n_classes
            allowed = "0 or more" if n is None else f"0..{n - 1} ({n} class names)"
            raise DecodeError("label out of range", f"`cls` is {text}, but must be {allowed}, or -1 for none")
        return label

    def _multi_hot(self, parts: Mapping[str, bytes]) -> Tensor:
        if "npy" not in parts:
            raise DecodeError("missing label", "there is no `npy` member, but other samples of the split have one")
        try:
            vector = np.load(io.BytesIO(parts["npy"]), allow_pickle=False)
            tensor = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
        except (ValueError, EOFError, OSError, TypeError) as error:
            raise DecodeError("bad label", f"`npy` is not a numeric NumPy array ({error})") from error
        if tensor.ndim != 1 or (self.n_classes is not None and len(tensor) != self.n_classes):
            n = self.n_classes
            expected = "one dimension" if n is None else f"shape ({n},), one entry a class name"
            raise DecodeError("bad label", f"`npy` must have {expected}, but has shape {tuple(tensor.shape)}")
        return tensor


def _open_image(parts: Mapping[str, bytes]) -> Image.Image:
    suffix = next((s for s in IMAGE_SUFFIXES if s in parts), None)
    if suffix is None:
        has = ", ".join(sorted(parts)) or "nothing that we read"
        raise DecodeError("no image", f"it has {has}, but no {' | '.join(IMAGE_SUFFIXES[:4])}")
    try:
        image = Image.open(io.BytesIO(parts[suffix]))
        image.load()
        return to_rgb(image)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        reason = f"{type(error).__name__}: {error}"
        raise DecodeError("undecodable image", f"its `{suffix}` does not decode ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB, turned upright by its EXIF tag.

    Transparency is laid on white; 16-bit and 32-bit greys are scaled by 1/257; float greys are taken as 0..1 where no
    value is above 1, else as 0..255; CMYK, YCbCr, LAB and palettes go through Pillow's own conversion.
    """
    image = ImageOps.exif_transpose(image)
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
    if "label" in fields:
        batch["label"] = torch.tensor([s["label"] for s in samples], dtype=torch.int64)
    if "multi_hot" in fields:
        empty = torch.zeros(0, n_classes or 0)
        batch["multi_hot"] = torch.stack([s["multi_hot"] for s in samples]) if samples else empty
    if "captions" in fields:
        batch["captions"] = [s["captions"] for s in samples]
    batch["key"] = [s["key"] for s in samples]
    return batch

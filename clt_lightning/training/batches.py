"""What a batch is: ours is a dict; others' loaders give tuples or bare images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError


def as_batch(batch: Any) -> dict[str, Any]:
    """A batch as a dict with `image`, and `label` where there is one (docs/design.md: what else a batch may hold).

    Args:
        batch: a dict that holds `image`; `(image, label)` or `(image,)` as torchvision's sets give them; or images.

    Raises:
        UserError: anything else, and images that are no `(B, 3, H, W)` tensor of floating point.
    """
    if isinstance(batch, Mapping):
        found = dict(batch)
        if "image" not in found:
            keys = ", ".join(map(str, found)) or "nothing"
            raise UserError(f"a batch must hold 'image' (B, 3, H, W), this one holds {keys}: rename it in your loader")
    elif isinstance(batch, Tensor):
        found = {"image": batch}
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and 1 <= len(batch) <= 2:
        found = dict(zip(("image", "label"), batch))
    else:
        size = f" of {len(batch)}" if isinstance(batch, Sequence) and not isinstance(batch, str) else ""
        raise UserError(
            f"a batch must be a dict with 'image', a tuple (image, label) or images, got {type(batch).__name__}{size}"
        )
    image, label = found["image"], found.get("label")
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
        kind = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(
            f"a batch's images must be a floating-point tensor (B, 3, H, W), got {kind}: give your data set the "
            "backbone's transform (clip.preprocess)"
        )
    if label is not None:
        found["label"] = torch.as_tensor(label)
        got = tuple(found["label"].shape)
        if got != image.shape[:1]:
            raise UserError(f"a batch's labels must be one whole number per image, ({len(image)},), got {got}")
    return found

"""Images and their captions: retrieval in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clt_lightning.analysis.arms import Arm
from clt_lightning.analysis.intervals import Interval, weighted_interval
from clt_lightning.analysis.multilabel import arm_json

_CHUNK = 1024
KS = (1, 5)


@dataclass(frozen=True)
class RetrievalResult:
    """Recall at 1 and 5 of one arm.

    Attributes:
        arm: which variant.
        n: images with captions.
        recall: `image_to_text_r1` (one of the image's own captions is nearest), `image_to_text_r5`,
            `text_to_image_r1` (the caption's own image is nearest; mean over captions), `text_to_image_r5`.
    """

    arm: Arm
    n: int
    recall: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return arm_json(self.arm) | {"n": self.n} | {name: value.to_json() for name, value in self.recall.items()}


def retrieval_result(
    arm: Arm, images: np.ndarray, texts: np.ndarray, owner: np.ndarray, draws: int, seed: int
) -> RetrievalResult:
    """Recall of one arm; intervals resample images together with their captions, against the whole gallery.

    Args:
        arm: which variant.
        images: `(n, embed_dim)` unit embeddings.
        texts: `(m, embed_dim)` unit embeddings.
        owner: `(m,)` the image of each caption, every image at least once.
        draws: resamples.
        seed: their seed.
    """
    n = len(images)
    image_rank = np.empty(n, dtype=np.int64)
    text_rank = np.empty(len(texts), dtype=np.int64)
    for start in range(0, n, _CHUNK):
        scores = images[start : start + _CHUNK] @ texts.T
        own = owner[None] == np.arange(start, start + len(scores))[:, None]
        best = np.where(own, scores, -np.inf).max(1, keepdims=True)
        # captions of other images that are at least as near: ties count against
        image_rank[start : start + _CHUNK] = ((scores >= best) & ~own).sum(1)
    for start in range(0, len(texts), _CHUNK):
        scores = texts[start : start + _CHUNK] @ images.T
        right = owner[start : start + _CHUNK]
        best = scores[np.arange(len(scores)), right][:, None]
        text_rank[start : start + _CHUNK] = (scores >= best).sum(1) - 1
    captions = np.bincount(owner, minlength=n)
    found = {f"image_to_text_r{k}": (image_rank < k).astype(np.float64) for k in KS}
    per_text = {f"text_to_image_r{k}": np.bincount(owner, text_rank < k, minlength=n) for k in KS}

    def recall(weights: np.ndarray) -> np.ndarray:
        w = weights.astype(np.float64)
        columns = [w @ hits / w.sum(1) for hits in found.values()]
        columns += [w @ hits / (w @ captions) for hits in per_text.values()]
        return np.stack(columns, 1)

    intervals = weighted_interval(n, recall, draws, seed)
    return RetrievalResult(arm, n, dict(zip([*found, *per_text], intervals)))

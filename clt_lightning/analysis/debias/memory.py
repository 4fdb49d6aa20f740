"""How much memory a study takes beside the backbone and the transcoders, told before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clt_lightning.analysis.debias.options import DebiasOptions
from clt_lightning.analysis.forward_memory import ONCE
from clt_lightning.backbone import Backbone
from clt_lightning.transcoder import CrossLayerTranscoder

#: Images of a batch of relevance, whose forward is kept for the gradient
_BATCH = 32
#: What a block keeps for the gradient, in tensors of the stream's size: those of norms, attention and activation
#: (weights have no gradient, so that inputs of linear maps are let go)
_KEPT = 14


def memory_of(
    clip: Backbone, clts: Sequence[CrossLayerTranscoder], data: Any, options: DebiasOptions, unbiased: Any = None
) -> int:
    """Bytes at the height of it, about.

    Args:
        clip: the backbone.
        clts: the transcoders; one at a time is at work.
        data: the data module.
        options: of the study.
        unbiased: the data module of unbiased images, or None.
    """
    o, side = options, clip.image_size
    data.setup("test")
    images, batch = 0, _BATCH
    for split in ("train", "val", "test"):
        plan = getattr(data.eval_dataloader(split), "plan", None)
        images += 0 if plan is None else plan.total
        batch = max(batch, getattr(data, "eval_batch_size", _BATCH))
    samples = o.images + o.group_images * len(data.groupnames or range(4))
    pictures = 2 * min(samples, 3 * images or samples) * 3 * side * side  # stacked from single ones
    pictures += 2 * batch * 3 * side * side
    embedded = images * clip.embed_dim * (1 if unbiased is None else 2)
    per_run = []
    for clt in clts:
        codes, tokens = clt.n_layers * clt.n_features, clip.n_positions
        relevance = 2 * (samples + o.images) * codes  # the largest once more while its batches are put together
        compared = (2 if unbiased is None else 3) * min(o.code_images, images or o.code_images)
        relevance += compared * codes // 2 + 3 * o.code_images * clt.n_features  # float16, and a layer's to be ranked
        passes = gradient_bytes(clip, clt, _BATCH) // 4 + batch * tokens * (clt.n_features + 8 * clip.d_model)
        per_run.append(relevance + 2 * tokens * codes + passes)
    return ONCE + 4 * (pictures + embedded + max(per_run))


def gradient_bytes(clip: Backbone, clt: CrossLayerTranscoder, images: int) -> int:
    """Bytes at the height of one batch of relevance, about: what its blocks keep, and codes of one layer."""
    return 4 * images * clip.n_positions * (4 * clt.n_features + _KEPT * clip.d_model * clip.n_layers)

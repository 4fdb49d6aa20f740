"""Images studied: their codes, their logits as sums, what each feature adds to them, and what happens without it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clt_lightning.analysis.study.batch import StudyBatch
from clt_lightning.analysis.study.types import Study, StudyOptions
from clt_lightning.analysis.tower import observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import Codes, CrossLayerTranscoder


@torch.no_grad()
def study_images(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    images: Tensor,
    head: Tensor | None = None,
    labels: Sequence[int] | None = None,
    options: StudyOptions | None = None,
) -> list[Study]:
    """Study images, all of them in one batch.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device.
        images: `(images, 3, size, size)`, preprocessed.
        head: `(embed_dim, classes)` from `clip.zero_shot_head`; None: the codes alone.
        labels: each image's class, -1 for none.
        options: how much is computed.

    Raises:
        UserError: images of another shape, or labels of another number.
    """
    if images.ndim != 4:
        raise UserError(f"study_images takes images (n, 3, size, size), got {tuple(images.shape)}")
    if labels is not None and len(labels) != len(images):
        raise UserError(f"study_images: {len(labels)} labels for {len(images)} images")
    images = images.to(clip.device)
    seen = observe(clip, images)
    codes = clt.encode(seen.y if clt.topology == "sae" else seen.x).detach()
    if head is None or head.shape[1] < 2:
        return StudyBatch(clip, clt, seen, codes).codes_alone()
    own = [-1] * len(images) if labels is None else [int(label) for label in labels]
    with replaced(clip, clt) as trace:
        cascade = observe(clip, images)
    by_layer = [trace.codes[layer].layer(0) for layer in range(clt.n_layers)]
    cascade_codes = Codes([pairs for pairs, _ in by_layer], [values for _, values in by_layer])
    batch = StudyBatch(clip, clt, seen, codes)
    return batch.studies(head.detach().float().to(clip.device), own, cascade, cascade_codes, options or StudyOptions())

"""Training on the cascade itself: all MLPs replaced at once, and what comes out compared with the original.

A transcoder that is trained on clean activations meets, once it replaces every MLP, inputs that its own earlier errors
have moved. These terms of the loss run the replaced CLIP with gradients: each feature learns what its writing does to
all later layers, attention included, and to the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.clip import FrozenCLIP
from clt_lightning.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.losses import CascadeConfig, normalized_error


def cascade_parts(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, images: Tensor, config: CascadeConfig
) -> dict[str, Tensor]:
    """The cascade's parts of the loss, with their coefficients.

    Args:
        clip: the frozen backbone.
        clt: the transcoder.
        images: `(images, 3, H, W)`.
        config: coefficients.

    Returns:
        `cascade_embedding`: mean of 1 - cosine between the original and the replaced embedding;
        `cascade_reconstruction`: normalised error between what the replaced MLPs add and the clean MLP outputs.
    """
    clean = clip.capture(images, embeddings=True)
    assert clean.embeddings is not None
    with replaced(clip, clt, grad=True) as trace, clt.activation.not_tracking():
        embeddings = clip.encode_image(images, grad=True)
    parts = {}
    if config.embedding:
        parts["cascade_embedding"] = config.embedding * (1 - (embeddings * clean.embeddings).sum(1)).mean()
    if config.reconstruction:
        y_hat = torch.stack([trace.y_hat[layer] for layer in range(clt.n_layers)])
        parts["cascade_reconstruction"] = config.reconstruction * normalized_error(clean.y, y_hat, clt.y_var).mean()
    return parts

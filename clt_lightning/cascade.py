"""Training on the cascade itself: all MLPs replaced at once, and what comes out compared with the original.

A transcoder that is trained on clean activations meets, once it replaces every MLP, inputs that its own earlier errors
have moved. These terms of the loss run the replaced CLIP with gradients: each feature learns what its writing does to
all later layers, attention included, and to the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        `cascade_stream`: normalised error of the residual stream after every block;
        `cascade_embedding`: mean of 1 - cosine between the original and the replaced embedding;
        `cascade_reconstruction`: normalised error between what the replaced MLPs add and the clean MLP outputs.
        Errors are divided by the variance of the layer's MLP output: the scale of the reconstruction.
    """
    with _streams(clip) as clean_stream:
        clean = clip.capture(images, embeddings=True)
    assert clean.embeddings is not None
    with _streams(clip) as stream, replaced(clip, clt, grad=True) as trace, clt.activation.not_tracking():
        embeddings = clip.encode_image(images, grad=True)
    parts = {}
    if config.stream:
        error = normalized_error(_joined(clean_stream), _joined(stream), clt.y_var)
        parts["cascade_stream"] = config.stream * error.mean()
    if config.embedding:
        parts["cascade_embedding"] = config.embedding * (1 - (embeddings * clean.embeddings).sum(1)).mean()
    if config.reconstruction:
        y_hat = torch.stack([trace.y_hat[layer] for layer in range(clt.n_layers)])
        parts["cascade_reconstruction"] = config.reconstruction * normalized_error(clean.y, y_hat, clt.y_var).mean()
    return parts


@contextmanager
def _streams(clip: FrozenCLIP) -> Iterator[list[Tensor]]:
    """While active, the list gets the residual stream after every block, images and positions in the tower's order."""
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, args, out: seen.append(out)) for block in clip.blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _joined(streams: list[Tensor]) -> Tensor:
    """`(layers, tokens, d_model)`, in fp32 at least: the errors are small beside the stream."""
    joined = torch.stack(streams).flatten(1, 2)
    return joined if joined.dtype == torch.float64 else joined.float()

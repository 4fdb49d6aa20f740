"""Training on the cascade itself: all MLPs replaced at once, and what comes out compared with the original.

A transcoder that is trained on clean activations meets, once it replaces every MLP, inputs that its own earlier errors
have moved. These terms of the loss run the replaced CLIP with gradients: each feature learns what its writing does to
all later layers, attention included, and to the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.activations import Activations
from clt_lightning.backbone.attention import contiguous_attention
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.losses import CascadeConfig, normalized_error


@dataclass(frozen=True)
class Clean:
    """What the unchanged CLIP makes of some images.

    Attributes:
        streams: the residual stream after every block, `(images, positions, d_model)` each.
        embeddings: unit-norm `(images, embed_dim)`.
        y: `(layers, tokens, d_model)` MLP outputs of all positions; None where they are not needed.
    """

    streams: list[Tensor]
    embeddings: Tensor
    y: Tensor | None = None

    def first(self, n: int) -> Clean:
        """The same of the first n images."""
        streams = [stream[:n] for stream in self.streams]
        y = None if self.y is None else self.y[:, : self.y.shape[1] // len(self.embeddings) * n]
        return Clean(streams, self.embeddings[:n], y)


def capture_clean(
    clip: Backbone,
    images: Tensor,
    positions: Tensor | None = None,
    sites: tuple[str, str] = ("mlp_in", "mlp_out"),
) -> tuple[Activations, Clean]:
    """The activations that a step trains on, and from the same forward what the cascade is compared with.

    Args:
        clip: the frozen backbone.
        images: `(images, 3, H, W)`.
        positions, sites: as `Backbone.capture` takes them.
    """
    with _streams(clip) as streams:
        acts = clip.capture(images, embeddings=True, positions=positions, sites=sites)
    assert acts.embeddings is not None
    return acts, Clean(streams, acts.embeddings, acts.y if positions is None else None)


def cascade_parts(
    clip: Backbone, clt: CrossLayerTranscoder, images: Tensor, config: CascadeConfig, clean: Clean | None = None
) -> dict[str, Tensor]:
    """The cascade's parts of the loss, with their coefficients.

    Args:
        clip: the frozen backbone.
        clt: the transcoder.
        images: `(images, 3, H, W)`.
        config: coefficients.
        clean: what `capture_clean` gave for these images, or for more of which these are the first; None makes it here.

    Returns:
        `cascade_stream`: normalised error of the residual stream after every block;
        `cascade_embedding`: mean of 1 - cosine between the original and the replaced embedding;
        `cascade_reconstruction`: normalised error between what the replaced MLPs add and the clean MLP outputs.
        Errors are divided by the variance of the layer's MLP output: the scale of the reconstruction.
    """
    if clean is None or (config.reconstruction and clean.y is None):
        clean = capture_clean(clip, images)[1]
    clean = clean.first(len(images))
    with (
        _streams(clip) as stream,
        contiguous_attention(clip.blocks),
        replaced(clip, clt, grad=True) as trace,
        clt.activation.not_tracking(),
    ):
        embeddings = clip.encode_image(images, grad=True)
    parts = {}
    if config.stream:
        error = normalized_error(_joined(clean.streams), _joined(stream), clt.y_var)
        parts["cascade_stream"] = config.stream * error.mean()
    if config.embedding:
        parts["cascade_embedding"] = config.embedding * (1 - (embeddings * clean.embeddings).sum(1)).mean()
    if config.reconstruction:
        assert clean.y is not None
        y_hat = torch.stack([trace.y_hat[layer] for layer in range(clt.n_layers)])
        parts["cascade_reconstruction"] = config.reconstruction * normalized_error(clean.y, y_hat, clt.y_var).mean()
    return parts


@contextmanager
def _streams(clip: Backbone) -> Iterator[list[Tensor]]:
    """While active, the list gets the residual stream after every block."""
    seen: list[Tensor] = []
    with clip.watch(lambda layer, stream: seen.append(stream), site="resid_post"):
        yield seen


def _joined(streams: list[Tensor]) -> Tensor:
    """`(layers, tokens, d_model)`, in fp32 at least: the errors are small beside the stream."""
    joined = torch.stack(streams).flatten(1, 2)
    return joined if joined.dtype == torch.float64 else joined.float()

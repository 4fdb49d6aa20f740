"""Training on the cascade itself: all MLPs replaced at once, and what comes out compared with the original.

A transcoder that is trained on clean activations meets, once it replaces every MLP, inputs that its own earlier errors
have moved. These terms of the loss run the replaced CLIP with gradients: each feature learns what its writing does to
all later layers, attention included, and to the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.activations import Activations
from clt_lightning.backbone.attention import fused_attention
from clt_lightning.core.arguments import check_fields
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.losses.reconstruction import normalized_error
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention


@dataclass
class CascadeConfig:
    """Terms on the replaced CLIP itself: all MLPs replaced at once, gradients through the whole stream. On by default;
    `stream: 0, embedding: 0` turns it off.

    Args:
        stream: weight of the normalised error of the residual stream after every block, in units of the variance of the
            layer's MLP output: later layers learn to make up for the errors of earlier ones; 0 turns it off.
        embedding: weight of 1 - cosine between the original and the replaced image embedding; 0 turns it off.
        reconstruction: weight of the normalised error between what the replaced MLPs add and the clean MLP outputs, on
            the reconstruction's scale; 0 turns it off.
        images: images of a batch that it is computed on, at most: its gradients are noisy, half of them cost half the
            time and a part of the gain.
        start: share of the run (of `trainer.max_steps`) after which it begins.
        warmup: share of the run over which the weights then rise linearly from 0. At full weight at once the gradients
            are several times as large as the second moments that Adam has gathered, and the first steps throw the
            transcoder back.
    """

    stream: float = 0.5
    embedding: float = 1.0
    reconstruction: float = 0.0
    images: int = 64
    start: float = 0.25
    warmup: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "loss.cascade")

    @property
    def is_on(self) -> bool:
        return max(self.stream, self.embedding, self.reconstruction) > 0

    def strength(self, step: int, max_steps: int) -> float:
        """Share of their weights that the terms have at an optimizer step (from 0 on) of a run of `max_steps`.

        A run without a length (-1) has neither start nor warm-up.
        """
        steps = max(max_steps, 0)
        since = step - self.start * steps
        if since < 0 or not self.is_on:
            return 0.0
        warmup = self.warmup * steps
        return min(1.0, (since + 1) / warmup) if warmup > 0 else 1.0


@dataclass(frozen=True)
class Clean:
    """What the unchanged CLIP makes of some images.

    Attributes:
        streams: the residual stream after every block, `(images, positions, d_model)` each.
        embeddings: unit-norm `(images, embed_dim)`.
        before: the stream at the entry of the first block, and before that block's MLP: no replaced MLP comes earlier.
        y: `(layers, tokens, d_model)` MLP outputs of all positions; None where they are not needed.
    """

    streams: list[Tensor]
    embeddings: Tensor
    before: tuple[Tensor, Tensor]
    y: Tensor | None = None

    def first(self, n: int) -> Clean:
        """The same of the first n images."""
        streams = [stream[:n] for stream in self.streams]
        y = None if self.y is None else self.y[:, : self.y.shape[1] // len(self.embeddings) * n]
        entry, mid = self.before
        return Clean(streams, self.embeddings[:n], (entry[:n], mid[:n]), y)


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
    before: dict[str, Tensor] = {}
    with (
        _streams(clip) as streams,
        clip.watch(lambda layer, stream: before.update(entry=stream), [0], "resid_pre"),
        clip.watch(lambda layer, stream: before.update(mid=stream), [0], "resid_mid"),
    ):
        acts = clip.capture(images, embeddings=True, positions=positions, sites=sites)
    assert acts.embeddings is not None
    y = acts.y if positions is None else None
    return acts, Clean(streams, acts.embeddings, (before["entry"], before["mid"]), y)


def cascade_parts(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    images: Tensor,
    config: CascadeConfig,
    clean: Clean | None = None,
    attention: AnyAttention | None = None,
    codes: Codes | None = None,
) -> dict[str, Tensor]:
    """The cascade's parts of the loss, with their coefficients.

    Args:
        clip: the frozen backbone.
        clt: the transcoder.
        images: `(images, 3, H, W)`.
        config: coefficients.
        clean: what `capture_clean` gave for these images, or for more of which these are the first; None makes it here.
        attention: replaces every attention as well, and gets its gradients too.
        codes: the transcoder's of the clean activations at all positions, of these images or of more of which these are
            the first. The first layer reads in the cascade what it reads there, so its codes are taken from them.

    Returns:
        `cascade_stream`: normalised error of the residual stream after every block;
        `cascade_embedding`: mean of 1 - cosine between the original and the replaced embedding;
        `cascade_reconstruction`: normalised error between what the replaced MLPs add and the clean MLP outputs.
        Errors are divided by the variance of the layer's MLP output: the scale of the reconstruction.
    """
    if clean is None or (config.reconstruction and clean.y is None):
        clean = capture_clean(clip, images)[1]
    clean = clean.first(len(images))
    entry, mid = clean.before
    known: dict[int, Codes] = {}
    if codes is not None and attention is None:  # what the first MLP reads is the clean model's
        known[0] = codes.slice(0).first(len(images) * mid.shape[1])
    with _streams(clip) as stream, fused_attention(clip.blocks), ExitStack() as stack:
        trace = stack.enter_context(replaced(clip, clt, grad=True, attention=attention, known=known))
        stack.enter_context(clt.activation.not_tracking())
        if attention is None:  # the first attention has run
            stack.enter_context(clip.override("resid_mid", lambda layer, x, compute: mid, [0]))
        else:
            stack.enter_context(attention.activation.not_tracking())
        embeddings = clip.run_from(0, entry, grad=True)
    parts = {}
    if config.stream:
        errors = [
            normalized_error(_tokens(before), _tokens(after), clt.y_var[layer : layer + 1])
            for layer, (before, after) in enumerate(zip(clean.streams, stream))
        ]
        parts["cascade_stream"] = config.stream * torch.cat(errors).mean()
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


def _tokens(stream: Tensor) -> Tensor:
    """`(1, tokens, d_model)`, in fp32 at least: the errors are small beside the stream."""
    tokens = stream.flatten(0, 1)[None]
    return tokens if tokens.dtype == torch.float64 else tokens.float()

"""The image tower in pieces: what one forward saw, and the rest of a forward from any layer on.

Evaluations run many variants of the same images that differ only from some layer on; what comes before is computed
once.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Observation:
    """What one forward of the tower saw.

    Attributes:
        streams: the residual stream at the entry of every block, `(images, positions, d_model)` each.
        attention: what each block's attention added at [CLS], `(images, d_model)` each; empty without a [CLS].
        before_mlp: the stream that the MLP's norm of some layers read, by layer, `(images, positions, d_model)`.
        x: what the transcoder reads, `(layers, tokens, d_in)`: MLP inputs, where it names no other site.
        y: what it rebuilds (or what was put in its place), `(layers, tokens, d_out)`: MLP outputs.
        embeddings: unit-norm `(images, embed_dim)` fp32.
    """

    streams: list[Tensor]
    attention: list[Tensor]
    before_mlp: dict[int, Tensor]
    x: Tensor
    y: Tensor
    embeddings: Tensor

    @property
    def n_images(self) -> int:
        return len(self.embeddings)

    def select(self, chosen: Tensor) -> Observation:
        """Some of the images.

        Args:
            chosen: `(images,)` bool.
        """
        tokens = chosen.repeat_interleave(self.x.shape[1] // self.n_images)
        return Observation(
            [stream[chosen] for stream in self.streams],
            [part[chosen] for part in self.attention],
            {layer: stream[chosen] for layer, stream in self.before_mlp.items()},
            self.x[:, tokens],
            self.y[:, tokens],
            self.embeddings[chosen],
        )


def observe(
    clip: Backbone, images: Tensor, before_mlp: Iterable[int] = (), clt: CrossLayerTranscoder | None = None
) -> Observation:
    """Run images through the tower and keep the stream; an active `replaced` or `mlp_override` holds in it.

    Args:
        clip: the backbone.
        images: `(images, 3, size, size)`, preprocessed.
        before_mlp: layers whose stream before the MLP is kept as well.
        clt: whose sites are kept; None: the inputs and outputs of all MLPs.
    """
    streams: list[Tensor] = []
    attention: list[Tensor] = []
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(clip.watch(lambda layer, x: streams.append(x), site="resid_pre"))
        if clip.has_cls:
            stack.enter_context(clip.watch(lambda layer, y: attention.append(y[:, 0]), site="attn_out"))
        if wanted := sorted(set(before_mlp)):
            stack.enter_context(clip.watch(kept.__setitem__, wanted, site="resid_mid"))
        if clt is None:
            acts = clip.capture(images, embeddings=True)
        else:
            sites = str(clt.sites.read), str(clt.sites.write)
            acts = clip.capture(images, check_fit(clip, clt), embeddings=True, sites=sites)
    assert acts.embeddings is not None
    return Observation(streams, attention, kept, acts.x, acts.y, acts.embeddings)


def finish(clip: Backbone, stream: Tensor, first: int, grad: bool = False) -> Tensor:
    """The rest of a forward from block `first` on: `clip.run_from`, whose words hold."""
    return clip.run_from(first, stream, grad=grad)


def advance(clip: Backbone, stream: Tensor, first: int, last: int) -> Tensor:
    """`(images, positions, d_model)` at the entry of block `last`, from that at the entry of block `first`."""
    with clip.running(grad=False):
        return clip.family.run_blocks(first, stream.to(clip.dtype), last)


def reads_cls_only(clip: Backbone) -> bool:
    """Whether the embedding is made of the last [CLS] token alone (OpenAI's CLIP), so that no other matters there."""
    return clip.readout() is not None


def at_all_mlps(clip: Backbone, clt: CrossLayerTranscoder) -> bool:
    """Whether a transcoder rebuilds the MLP outputs of all blocks: what splitting up a logit takes for granted."""
    return clt.sites.is_mlp and len(check_fit(clip, clt)) == clip.n_layers

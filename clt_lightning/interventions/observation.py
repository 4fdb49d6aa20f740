"""What one forward of the tower saw: everything that an evaluation needs of it, kept at once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.interventions.attention import AttentionSites, AttentionWatch
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Needs:
    """What is to be kept of a forward, beside the sites of the transcoder and the embeddings.

    Attributes:
        streams: blocks whose entry is kept; the number of blocks stands for what follows the last.
        before_mlp: blocks whose stream before the MLP is kept.
        attention: whether to keep what each block's attention adds at [CLS].
        attention_sites: whether to keep what every attention layer reads and adds, at all positions.
        attention_heads: whether to keep the heads' outputs with these.
    """

    streams: frozenset[int] = frozenset()
    before_mlp: frozenset[int] = frozenset()
    attention: bool = False
    attention_sites: bool = False
    attention_heads: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.streams | other.streams,
            self.before_mlp | other.before_mlp,
            self.attention or other.attention,
            self.attention_sites or other.attention_sites,
            self.attention_heads or other.attention_heads,
        )

    @classmethod
    def everything(cls, clip: Backbone, before_mlp: Iterable[int] = ()) -> Needs:
        """All entries, what follows the last block, all attention; of streams before an MLP those that are named."""
        return cls(frozenset(range(clip.n_layers + 1)), frozenset(before_mlp), attention=True)


@dataclass(frozen=True)
class Observation:
    """What one forward of the tower saw.

    Attributes:
        streams: the residual stream at the entry of blocks, `(images, positions, d_model)`, by block; behind the last
            one under the number of blocks.
        attention: what each block's attention added at [CLS], `(images, d_model)` each; empty without a [CLS].
        before_mlp: the stream that the MLP's norm of some layers read, by layer, `(images, positions, d_model)`.
        x: what the transcoder reads, `(layers, tokens, d_in)`: MLP inputs, where it names no other site.
        y: what it rebuilds (or what was put in its place), `(layers, tokens, d_out)`: MLP outputs.
        embeddings: unit-norm `(images, embed_dim)` fp32.
        attention_sites: what every attention layer reads and adds; None where it was not asked for.
    """

    streams: dict[int, Float[Tensor, "images positions d_model"]]
    attention: list[Float[Tensor, "images d_model"]]
    before_mlp: dict[int, Float[Tensor, "images positions d_model"]]
    x: Float[Tensor, "layers tokens d_in"]
    y: Float[Tensor, "layers tokens d_out"]
    embeddings: Float[Tensor, "images embed_dim"]
    attention_sites: AttentionSites | None = None

    @property
    def n_images(self) -> int:
        return len(self.embeddings)

    def select(self, chosen: Bool[Tensor, " images"]) -> Observation:
        """Some of the images.

        Args:
            chosen: `(images,)` bool.
        """
        tokens = chosen.repeat_interleave(self.x.shape[1] // self.n_images)
        return Observation(
            {block: stream[chosen] for block, stream in self.streams.items()},
            [part[chosen] for part in self.attention],
            {layer: stream[chosen] for layer, stream in self.before_mlp.items()},
            self.x[:, tokens],
            self.y[:, tokens],
            self.embeddings[chosen],
            None if self.attention_sites is None else self.attention_sites.select(chosen),
        )


def observe(
    clip: Backbone,
    images: Float[Tensor, "images 3 size size"],
    before_mlp: Iterable[int] = (),
    clt: CrossLayerTranscoder | None = None,
    needs: Needs | None = None,
) -> Observation:
    """Run images through the tower once and keep the stream; an active `replaced` or `override` holds in it.

    Args:
        clip: the backbone.
        images: `(images, 3, size, size)`, preprocessed.
        before_mlp: layers whose stream before the MLP is kept as well.
        clt: whose sites are kept; None: the inputs and outputs of all MLPs.
        needs: what else is kept; None: the entries of all blocks and all attention at [CLS].
    """
    wanted = Needs.everything(clip) if needs is None else needs
    wanted |= Needs(before_mlp=frozenset(before_mlp))
    streams: dict[int, Tensor] = {}
    attention: list[Tensor] = []
    kept: dict[int, Tensor] = {}
    heads = AttentionWatch(clip, wanted.attention_heads) if wanted.attention_sites else None
    with ExitStack() as stack:
        if heads is not None:
            stack.enter_context(heads.active())
        entries = wanted.streams - {clip.n_layers}
        for blocks, site, into in ((entries, "resid_pre", streams), (wanted.before_mlp, "resid_mid", kept)):
            if blocks:
                stack.enter_context(clip.watch(into.__setitem__, sorted(blocks), site=site))
        if clip.n_layers in wanted.streams:
            last = clip.n_layers - 1
            stack.enter_context(clip.watch(lambda _, x: streams.update({last + 1: x}), [last], site="resid_post"))
        if wanted.attention and clip.has_cls:
            # a copy: a view would hold all positions
            stack.enter_context(clip.watch(lambda layer, y: attention.append(y[:, 0].clone()), site="attn_out"))
        if clt is None:
            acts = clip.capture(images, embeddings=True)
        else:
            sites = str(clt.sites.read), str(clt.sites.write)
            acts = clip.capture(images, check_fit(clip, clt), embeddings=True, sites=sites)
    assert acts.embeddings is not None
    if not len(images):  # no forward was run
        room = acts.x.new_zeros(0, clip.n_positions, clip.d_model)
        streams, kept = dict.fromkeys(wanted.streams, room), dict.fromkeys(wanted.before_mlp, room)
        attention = [room[:, 0]] * (clip.n_layers if wanted.attention and clip.has_cls else 0)
    found = None if heads is None else heads.sites()
    return Observation(streams, attention, kept, acts.x, acts.y, acts.embeddings, found)

"""Changed models from what the untouched one has seen: nothing before the first change is run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.interventions.observation import Needs, Observation
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder

#: Sites behind which nothing of their own block is left to run
ENDS = ("mlp_out", "resid_post")
#: Sites that the attention of their block does not read any more
PAST_ATTENTION = ("attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post", "final_tokens")


def starts(clt: CrossLayerTranscoder, blocks: Sequence[int], n_layers: int) -> Needs:
    """What a forward must keep so that windows can begin at these blocks."""
    if clt.sites.once:
        return Needs(streams=frozenset([n_layers - 1]))
    if clt.sites.write == "mlp_out":
        return Needs(before_mlp=frozenset(blocks))
    return Needs() if clt.sites.write in ENDS else Needs(streams=frozenset(blocks))


def start_of(clip: Backbone, clt: CrossLayerTranscoder, seen: Observation, block: int) -> int:
    """The first block that `resume` leaves to run."""
    site = str(clt.sites.write)
    if site in ENDS and (site == "resid_post" or block in seen.before_mlp):
        return block + 1
    return clip.n_layers - 1 if clt.sites.once else block


def advance(clip: Backbone, stream: Tensor, first: int, last: int) -> Tensor:
    """`(images, positions, d_model)` at the entry of block `last`, from that at the entry of block `first`."""
    with clip.running(grad=False):
        return clip.family.run_blocks(first, stream.to(clip.dtype), last)


def resume(
    clip: Backbone, clt: CrossLayerTranscoder, seen: Observation, block: int, new: Tensor, tokens: str
) -> tuple[int, Tensor]:
    """Where a forward goes on whose first change is that what a transcoder rebuilds in one block holds `new`.

    Args:
        clip: the backbone.
        clt: the transcoder.
        seen: the untouched model, with what `starts` names; or the entries of blocks, which cost a block more.
        block: the block.
        new: `(images, positions, d_out)`, or what broadcasts to it.
        tokens: at which tokens.

    Returns:
        the next block to run, and the stream `(images, positions, d_model)` at its entry: the block itself where
        something of it comes after the site, which an override must change then.
    """
    start = start_of(clip, clt, seen, block)
    if start <= block or clt.sites.once:
        return start, seen.streams[start]
    own = seen.y[check_fit(clip, clt).index(block)].unflatten(0, (seen.n_images, -1))
    if tokens == "all":
        y = new.to(own.dtype).expand_as(own)
    else:
        y, span = own.clone(), clip.tokens.span(tokens)
        y[:, span] = new.to(own.dtype).expand_as(own)[:, span]
    return start, y if clt.sites.write == "resid_post" else seen.before_mlp[block] + y


def ends_at_cls(clip: Backbone, block: int) -> bool:
    """Whether a block is the last one, of a backbone that reads its embedding from [CLS]."""
    return block == clip.n_layers - 1 and clip.readout() is not None


def last_mlp_at_cls(clip: Backbone) -> AbstractContextManager[None]:
    """While active, the last block's MLP runs at [CLS] alone, where nothing else is read; no override may be there."""
    if clip.readout() is None:
        return nullcontext()

    def at_cls(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        y = torch.zeros_like(x)
        with torch.autocast(x.device.type, enabled=False):
            y[:, :1] = clip.family.mlp(clip.blocks[block], x[:, :1])
        return y

    return clip.override("mlp_out", at_cls, [clip.n_layers - 1])


def last_attention_at_cls(clip: Backbone) -> AbstractContextManager[None]:
    """While active, the last block's attention runs for [CLS] alone, where nothing else is read.

    Not where something else looks at that block, or its attention is of a form that is not known.
    """
    last = clip.n_layers - 1
    if clip.readout() is None or clip.taps.tapped(last):
        return nullcontext()

    def at_cls(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            found = clip.family.attention_at_cls(block, x)
        if found is None:
            return compute()
        y = torch.zeros_like(x)
        y[:, :1] = found
        return y

    return clip.override("attn_out", at_cls, [last])

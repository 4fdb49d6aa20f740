"""Changed models from what the untouched one has seen: nothing before the first change is run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.taps import OverrideFn
from clt_lightning.interventions.observation import Needs, Observation
from clt_lightning.interventions.replacement import ReplacementTrace, check_fit, replaced
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

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
    site = str(clt.sites.write)
    if site not in ENDS or (site == "mlp_out" and block not in seen.before_mlp):
        first = clip.n_layers - 1 if clt.sites.once else block
        return first, seen.streams[first]
    own = seen.y[check_fit(clip, clt).index(block)].unflatten(0, (seen.n_images, -1))
    if tokens == "all":
        y = new.to(own.dtype).expand_as(own)
    else:
        y, span = own.clone(), clip.tokens.span(tokens)
        y[:, span] = new.to(own.dtype).expand_as(own)[:, span]
    return block + 1, y if site == "resid_post" else seen.before_mlp[block] + y


def embed_replaced(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    window: Sequence[int],
    tokens: str,
    seen: Observation,
    codes: Codes,
    first: Tensor,
    **parts: Any,
) -> Tensor:
    """The embeddings with a window replaced, from what an untouched forward saw: nothing before it is run again.

    Args:
        clip: the backbone.
        clt: the transcoder.
        window: blocks, as `replaced` takes them.
        tokens: as well.
        seen: the untouched model, with what `starts` names for the window's first block.
        codes: its codes at all positions.
        first: `(tokens, d_out)` what the window's first layer gets: all that it reads is as in the untouched model.
        **parts: `edit` and `skip`, as `replaced` takes them.

    Returns:
        unit-norm `(images, embed_dim)`: what `encode_image` gives within `replaced`.

    Raises:
        UserError: as `replaced`.
    """
    block, last = min(window), max(window)
    start, stream = resume(clip, clt, seen, block, first.unflatten(0, (seen.n_images, -1)), tokens)
    # after the last attention [CLS] alone is read: nothing is encoded for the others
    at_mlps = (str(clt.sites.read), str(clt.sites.write)) == ("mlp_in", "mlp_out")
    alone = at_mlps and not parts and tokens in ("all", "cls") and ends_at_cls(clip, last) and start <= last
    inner = [b for b in window if b != last] if alone else window
    with replaced(clip, clt, inner or [block], tokens, **parts) as trace, ExitStack() as stack:
        if clt.topology == "cross_layer":
            row = check_fit(clip, clt).index(block)
            known = codes
            if tokens != "all":
                kept = torch.zeros(clip.n_positions, dtype=torch.bool, device=codes.device)
                kept[clip.tokens.span(tokens)] = True
                known = codes.select_tokens(kept.repeat(seen.n_images))
            # features of these layers write into later ones
            trace.codes.update({i: known.slice(i) for i in range(row + (start > block))})
        if alone:
            stack.enter_context(clip.override("mlp_out", _rebuild_cls(clt, trace, tokens), [last]))
        elif last < clip.n_layers - 1:
            stack.enter_context(last_mlp_at_cls(clip))
        return clip.run_from(start, stream)


def ends_at_cls(clip: Backbone, block: int) -> bool:
    """Whether a block is the last one, of a backbone that reads its embedding from [CLS]."""
    return block == clip.n_layers - 1 and clip.readout() is not None


def last_mlp_at_cls(clip: Backbone) -> AbstractContextManager[None]:
    """While active, the last block's MLP runs at [CLS] alone, where nothing else is read; no override may be there."""
    if clip.readout() is None:
        return nullcontext()
    return clip.override("mlp_out", lambda block, x, compute: own_at_cls(clip, block, x), [clip.n_layers - 1])


def own_at_cls(clip: Backbone, block: int, x: Tensor) -> Tensor:
    """A block's own MLP output `(images, positions, d_model)` at [CLS], zeros elsewhere."""
    y = torch.zeros_like(x)
    with torch.autocast(x.device.type, enabled=False):
        y[:, :1] = clip.family.mlp(clip.blocks[block], x[:, :1])
    return y


def _rebuild_cls(clt: CrossLayerTranscoder, trace: ReplacementTrace, tokens: str) -> OverrideFn:
    """Puts the last MLP's reconstruction at [CLS], from the codes of a replaced forward under way."""
    row = clt.n_layers - 1

    def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        images, positions = x.shape[:2]
        codes = {i: trace.codes[i] for i in range(row) if clt.writes(i, row)}
        if tokens == "all":
            is_cls = torch.arange(images * positions, device=x.device) % positions == 0
            codes = {i: known.select_tokens(is_cls) for i, known in codes.items()}
        read = x[:, 0]
        codes[row] = clt.encode_layer(read, row, cls=torch.arange(images, device=read.device))
        y = torch.zeros_like(x)
        y[:, 0] = (clt.in_units(clt.layer_sum(codes, row), read) + clt.rest_term(read, row)).to(x.dtype)
        return y

    return put

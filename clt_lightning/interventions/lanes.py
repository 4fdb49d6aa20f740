"""Changed models side by side: each goes on from where it first differs, and a block runs once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.attention import fused_attention
from clt_lightning.interventions.observation import Observation
from clt_lightning.interventions.replacement import Replacement, ReplacementTrace, check_fit
from clt_lightning.interventions.resume import (
    advance,
    ends_at_cls,
    last_attention_at_cls,
    last_mlp_at_cls,
    resume,
    start_of,
)
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: Numbers of the stream that go through a block at once, where a single lane has no more: what a cache holds
NUMBERS = 1 << 21

Own = Callable[[slice], Tensor]
"""`own(span)`: the site's own tensor at some positions, `(images, positions, d_out)`; `final`: all of it."""

_ALL = slice(None)


class Lane:
    """A changed model on some images. Subclasses write `made`.

    Args:
        clip: the backbone.
        clt: whose site is changed.
        window: the blocks where it is, ascending.
        tokens: at which tokens.
        seen: the untouched model on the images, with what `resume.starts` names for the window's first block.

    Attributes:
        n_images: rows of it.
        start: the first block that runs.
        blocks: those of the window that run.
    """

    def __init__(
        self, clip: Backbone, clt: CrossLayerTranscoder, window: Sequence[int], tokens: str, seen: Observation
    ) -> None:
        self.clip, self.clt, self.window, self.tokens, self.seen = clip, clt, list(window), tokens, seen
        self.n_images, self.start = seen.n_images, start_of(clip, clt, seen, window[0])
        self.blocks = [block for block in window if clt.sites.once or block >= self.start]

    def entry(self) -> Tensor:
        """The stream `(images, positions, d_model)` at the entry of block `start`; called once, before it runs."""
        return resume(self.clip, self.clt, self.seen, self.window[0], self.first(), self.tokens)[1]

    def first(self) -> Tensor:
        """What the first block of the window gets, `(images, positions, d_out)`, or what broadcasts to it."""
        raise NotImplementedError

    def see(self, block: int, x: Tensor) -> None:
        """Told what the transcoder reads in a block that runs, `(images, positions, d_in)`."""

    def made(self, block: int, x: Tensor, own: Own) -> Tensor:
        """What one of `blocks` gets at these tokens, `(images, their positions, d_out)`; `x` is what it is made of."""
        raise NotImplementedError

    def put(self, block: int, x: Tensor, own: Own) -> Tensor:
        """The site's tensor in one of `blocks`, of the shape of `x`."""
        if x.ndim == 2:  # one vector per image
            return self.made(block, x[:, None], lambda span: own(span)[:, None])[:, 0].to(x.dtype)
        here = _ALL if self.tokens == "all" else self.clip.tokens.span(self.tokens)
        if self.clt.sites.write == "mlp_out" and ends_at_cls(self.clip, block):
            has_cls = self.tokens in ("all", "cls")
            return _at_cls(x, self.made(block, x, own) if has_cls else own(slice(0, 1)))
        new = self.made(block, x, own).to(x.dtype)
        if here == _ALL:
            return new
        return torch.cat([own(slice(0, here.start)), new, own(slice(here.stop, x.shape[1]))], 1)


class Fixed(Lane):
    """Outputs that are known before anything is run.

    Args:
        outputs: of each block of the window `(images, positions, d_out)`, or what broadcasts to it, at all positions.
    """

    def __init__(self, *place: Any, outputs: Callable[[int], Tensor]) -> None:
        super().__init__(*place)
        self.outputs = outputs

    def first(self) -> Tensor:
        return self.outputs(self.window[0])

    def made(self, block: int, x: Tensor, own: Own) -> Tensor:
        here = _ALL if self.tokens == "all" or x.shape[1] == 1 else self.clip.tokens.span(self.tokens)
        return self.outputs(block).expand(x.shape)[:, here]


class Cascaded(Lane):
    """A transcoder in the place of its sites, each x read from the running stream: as within `replaced`.

    Args:
        codes: of the untouched model, at all positions.
        new: `(images, positions, d_out)` what the first block gets: all that it reads is as in the untouched model.
        parts: `edit` and `skip`, as `replaced` takes them.
    """

    def __init__(self, *place: Any, codes: Codes, new: Tensor, parts: dict[str, Any]) -> None:
        super().__init__(*place)
        self.codes, self.new = codes, new
        clt, last = self.clt, self.window[-1]
        self._model = Replacement(self.clip, clt, self.window, self.tokens, trace=ReplacementTrace(), **parts)
        # after the last attention [CLS] alone is read: nothing is encoded for the others
        at_mlps = (str(clt.sites.read), str(clt.sites.write)) == ("mlp_in", "mlp_out")
        alone = at_mlps and not parts and self.tokens in ("all", "cls") and ends_at_cls(self.clip, last)
        self._alone = last if alone else None

    def first(self) -> Tensor:
        clt, clip, codes = self.clt, self.clip, self.codes
        if clt.topology == "cross_layer":  # features of layers before the window write into it
            row = check_fit(clip, clt).index(self.window[0])
            if self.tokens != "all":
                kept = torch.zeros(clip.n_positions, dtype=torch.bool, device=codes.device)
                kept[clip.tokens.span(self.tokens)] = True
                codes = codes.select_tokens(kept.repeat(self.n_images))
            self._model.trace.codes.update({i: codes.slice(i) for i in range(row + (self.start > self.window[0]))})
        return self.new

    def see(self, block: int, x: Tensor) -> None:
        if block in self._model.to_read and block != self._alone:
            self._model.see(block, x)

    def made(self, block: int, x: Tensor, own: Own) -> Tensor:
        if block == self._alone:
            return self._at_cls(block, x[:, 0])
        if self._model.reads_own(block):  # else `see` was told
            whole = own(_ALL)
            if self._model.read == self._model.write:
                self._model.see(block, whole)
        y_hat: Tensor = self._model.made(block).unflatten(0, (self.n_images, -1))
        return y_hat

    def _at_cls(self, block: int, x: Tensor) -> Tensor:
        """The reconstruction `(images, 1, d_out)` of what [CLS] reads, `(images, d_in)`."""
        clt, row, trace = self.clt, self._model.rows[block], self._model.trace
        codes = {i: trace.codes[i] for i in range(row) if clt.writes(i, row)}
        if self.tokens == "all":
            positions = torch.arange(self.n_images * self.clip.n_positions, device=x.device)
            codes = {i: known.select_tokens(positions % self.clip.n_positions == 0) for i, known in codes.items()}
        codes[row] = clt.encode_layer(x, row, cls=torch.arange(len(x), device=x.device))
        y_hat: Tensor = clt.in_units(clt.layer_sum(codes, row), x) + clt.rest_term(x, row)
        return y_hat[:, None]


class Added(Lane):
    """Something put onto the MLPs' own outputs, each computed from the running stream.

    Args:
        first: the first block of which the output is changed.
        parts: `(images, positions, d_model)` what is added, of each block from `first` on.
        behind: the untouched stream `(images, positions, d_model)` behind block `first`.
    """

    def __init__(
        self, clip: Backbone, clt: CrossLayerTranscoder, first: int, parts: Sequence[Tensor], behind: Tensor
    ) -> None:
        self.clip, self.clt, self.tokens = clip, clt, "all"
        self.n_images, self.start, self.parts, self.behind = len(behind), first + 1, parts, behind
        self.blocks = list(range(self.start, clip.n_layers))

    def entry(self) -> Tensor:
        return self.behind + self.parts[0].to(self.behind.dtype)

    def made(self, block: int, x: Tensor, own: Own) -> Tensor:
        here = slice(0, 1) if ends_at_cls(self.clip, block) else _ALL
        y = own(here)
        return y + self.parts[block + 1 - self.start][:, here].to(y.dtype)


@torch.no_grad()
def run_lanes(lanes: Sequence[Lane]) -> list[Tensor]:
    """The embeddings of changed models of one backbone and transcoder.

    Args:
        lanes: the models. At most `NUMBERS` of their streams go through a block at once, or one of them.

    Returns:
        unit-norm `(images, embed_dim)` of each.
    """
    found: dict[int, Tensor] = {}
    for group in _groups(lanes):
        found |= dict(zip(group, _Together([lanes[index] for index in group]).embeddings()))
    return [found[index] for index in range(len(lanes))]


def rows_at_once(clip: Backbone) -> int:
    """Images that go through a block at once."""
    return max(1, NUMBERS // (clip.n_positions * clip.d_model))


def _groups(lanes: Sequence[Lane]) -> Iterator[list[int]]:
    """Lanes that run together: those that begin early with others that do."""
    group: list[int] = []
    for index in sorted(range(len(lanes)), key=lambda index: lanes[index].start):
        images = sum(lanes[i].n_images for i in [*group, index])
        if group and images > rows_at_once(lanes[index].clip):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class _Together:
    """Lanes in the order of their starts, rows of one stream."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes, self.clip, self.clt = lanes, lanes[0].clip, lanes[0].clt
        self.read, self.write = str(self.clt.sites.read), str(self.clt.sites.write)
        ends = torch.tensor([lane.n_images for lane in lanes]).cumsum(0).tolist()
        self.rows = [slice(end - lane.n_images, end) for lane, end in zip(lanes, ends)]

    def embeddings(self) -> list[Tensor]:
        clip, first, last = self.clip, self.lanes[0].start, self.clip.n_layers - 1
        changed = {block for lane in self.lanes for block in lane.blocks}
        with ExitStack() as stack:
            stack.enter_context(fused_attention(clip.blocks[first:]))
            if self.write == "mlp_out":
                stack.enter_context(last_attention_at_cls(clip))
            if self.read != self.write and changed:
                stack.enter_context(clip.watch(self._see, sorted(self._seen(changed)), self.read))
            if self.write == "mlp_out" and clip.readout() is not None:
                changed |= {last}
            elif last not in changed:
                stack.enter_context(last_mlp_at_cls(clip))
            if changed:
                stack.enter_context(clip.override(self.write, self._put, sorted(changed)))
            stream = _joined(self._entering(first))
            for block in range(first, clip.n_layers):
                stream = _joined([advance(clip, stream, block, block + 1), *self._entering(block + 1)])
            return list(clip.run_from(clip.n_layers, stream).split([lane.n_images for lane in self.lanes]))

    def _entering(self, block: int) -> list[Tensor]:
        return [lane.entry() for lane in self.lanes if lane.start == block]

    def _seen(self, changed: set[int]) -> set[int]:
        """Blocks that are read, up to the last that is changed."""
        if self.clt.sites.once:
            return changed
        return {block for block in check_fit(self.clip, self.clt) if block <= max(changed)}

    def _see(self, block: int, x: Tensor) -> None:
        for lane, rows in zip(self.lanes, self.rows):
            if self.clt.sites.once or lane.start <= block:
                lane.see(block, x[rows])

    def _put(self, block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        owner = _OwnMLP(self.clip, block, x) if self.write == "mlp_out" else _OwnSite(compute)
        parts = []
        for lane, rows in zip(self.lanes, self.rows):
            if rows.start >= len(x):
                break  # it begins later
            own = partial(owner, rows)
            if block in lane.blocks:
                parts.append(lane.put(block, x[rows], own))
            elif self.write == "mlp_out" and ends_at_cls(self.clip, block):
                parts.append(_at_cls(x[rows], own(slice(0, 1))))
            else:
                parts.append(own(_ALL))
        return _joined(parts)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _OwnMLP:
    """A block's own MLP output, of the tokens that are wanted alone."""

    def __init__(self, clip: Backbone, block: int, x: Tensor) -> None:
        self.clip, self.block, self.x = clip, block, x
        self.whole: dict[int, Tensor] = {}

    def __call__(self, rows: slice, span: slice) -> Tensor:
        if rows.start in self.whole:
            return self.whole[rows.start][:, span]
        part = self.x[rows, span]
        if part.numel():
            with torch.autocast(part.device.type, enabled=False):
                part = self.clip.family.mlp(self.clip.blocks[self.block], part)
        if span == _ALL:
            self.whole[rows.start] = part
        return part


class _OwnSite:
    """A site's own tensor, computed once for all where anyone wants it."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = cache(compute)

    def __call__(self, rows: slice, span: slice) -> Tensor:
        whole = self.compute()
        return whole[rows] if whole.ndim == 2 else whole[rows, span]


def _at_cls(x: Tensor, new: Tensor) -> Tensor:
    """What is read of the last MLP's output: `new (images, 1 or more, d)` at [CLS], zeros elsewhere."""
    y = torch.zeros_like(x)
    y[:, :1] = new[:, :1].to(x.dtype)
    return y

"""Where codes of [CLS] are amplified: what the chosen features write there, and how well they rebuild it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import FINAL_SITES, STREAM_SITES
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.normalization import standardise

#: What is added to the stream, so that it is still there after the last block
_ADDED = ("attn_out", "mlp_out")
_TINY = 1e-30


@dataclass(frozen=True)
class Place:
    """One place of the model at which [CLS] is moved.

    Attributes:
        site: of the backbone.
        block: its block; 0 for a site that the model has once.
        targets: the transcoder's layers whose features' terms are added there.
    """

    site: str
    block: int
    targets: tuple[int, ...]


class Seen:
    """[CLS] of some images at one place, and what the transcoder says of it.

    Attributes:
        x: `(images, d)` the tensor itself.
        terms: `(targets, images, d)` what the chosen layers' features write, a target each.
        unit: `(images, 1)` the unit of the terms: each token's standard deviation, where the transcoder standardises
            tokens; else 1.
    """

    def __init__(self, x: Tensor, terms: Tensor, unit: Tensor, rebuild: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.x, self.terms, self.unit = x, terms, unit
        self._rebuild = rebuild

    @cached_property
    def rebuilt(self) -> tuple[Tensor, Tensor]:
        """What the transcoder rebuilds and the reconstruction, `(targets, images, d_out)` both."""
        return self._rebuild()

    def fvu(self, means: Tensor) -> Tensor:
        """`(targets, images)`: `|y - y_hat|^2 / |y - mean|^2` of each image, with the means `(targets, d_out)`."""
        y, y_hat = self.rebuilt
        return (y - y_hat).square().sum(2) / (y - means[:, None].to(y)).square().sum(2).clamp(min=_TINY)


@dataclass(frozen=True)
class Observed:
    """Images in the untouched model.

    Attributes:
        seen: [CLS] at each place.
        embeddings: `(images, embed_dim)` of length 1.
        entry: `(images, positions, d_model)` the stream that the moved model starts from; None where only [CLS] after
            the last block, or the embedding, is moved.
    """

    seen: list[Seen]
    embeddings: Tensor
    entry: Tensor | None


def moved(x: Tensor, displacement: Tensor) -> Tensor:
    """`x + displacement`, brought back to the length of x; rows that are not displaced stay as they are to the bit."""
    new = x + displacement.to(x)
    result: Tensor = new * (x.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True).clamp(min=_TINY))
    return result


Displace = Callable[[int, Seen], Tensor]
"""`displace(place, seen) -> (images, d)`: what is added to [CLS] at a place, by its number."""


class Amplifier:
    """A transcoder's features at [CLS], amplified in a backbone.

    What features write to `mlp_out` or `attn_out` is summed over the chosen layers' targets and moves the stream after
    the last block; what an autoencoder rebuilds of the stream (or of the model's output) is moved in place, each
    layer by itself, and later layers see it.

    Args:
        clip: the backbone.
        clt: the transcoder.
        layers: the backbone's blocks whose features are amplified; None: all where the transcoder stands.

    Raises:
        UserError: backbone and transcoder do not fit, no such layers, a backbone without [CLS], or features that write
            neither to the stream nor into it.
    """

    def __init__(self, clip: Backbone, clt: CrossLayerTranscoder, layers: Sequence[int] | None = None) -> None:
        self.clip, self.clt = clip, clt
        self.blocks = check_fit(clip, clt)
        self.read, self.write = str(clt.sites.read), str(clt.sites.write)
        if not clip.has_cls and self.write != "final":
            raise UserError(f"amplifying moves [CLS], and the backbone '{clip.name}' has none")
        self.sources = self._rows(layers)
        self.places = self._places()
        self.targets = tuple(target for place in self.places for target in place.targets)
        #: The stream after the last block, or the embedding, is all that is moved: no block need be run again
        self.at_end = len(self.places) == 1 and (self.places[0].site, self.places[0].block) in (
            ("resid_post", clip.n_layers - 1),
            ("final", 0),
        )

    @property
    def first(self) -> int:
        """The block from which the moved model is run."""
        last = self.clip.n_layers - 1
        return min(last if place.site in FINAL_SITES else place.block for place in self.places)

    def _rows(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        if layers is not None and self.clt.sites.once:
            raise UserError(f"layers {list(layers)}: the model has {self.write} once, so there are none to choose")
        if layers is None:
            return tuple(range(self.clt.n_layers))
        wanted = sorted(self.clip.check_layers(layers))
        missing = [block for block in wanted if block not in self.blocks]
        if missing:
            raise UserError(f"layers {missing}: this transcoder stands at blocks {list(self.blocks)} alone")
        return tuple(self.blocks.index(block) for block in wanted)

    def _places(self) -> list[Place]:
        if self.write in _ADDED:
            reached = (j for j in range(self.clt.n_layers) if any(self.clt.writes(i, j) for i in self.sources))
            return [Place("resid_post", self.clip.n_layers - 1, tuple(reached))]
        if self.write not in (*STREAM_SITES, *FINAL_SITES):
            raise UserError(f"amplifying moves the stream or what is made of it: it cannot move {self.write}")
        return [Place(self.write, self.blocks[row], (row,)) for row in self.sources]

    # -- the untouched model -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, images: Tensor) -> Observed:
        """[CLS] at every place, the embeddings, and where the moved model starts: one forward."""
        kept: dict[tuple[str, int], Tensor] = {}
        entry: list[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(self._watched(kept, ends=True))
            if not self.at_end:
                keep = lambda _, stream: entry.append(stream)  # noqa: E731
                stack.enter_context(self.clip.watch(keep, [self.first], "resid_pre"))
            embeddings = self.clip.encode_image(images)
        codes = self._codes(kept)
        seen = [self._seen(place, kept[place.site, place.block], kept, codes) for place in self.places]
        return Observed(seen, embeddings, entry[0] if entry else None)

    @contextmanager
    def _watched(self, kept: dict[tuple[str, int], Tensor], ends: bool) -> Iterator[None]:
        """[CLS] of all sites that are read, by site and block; with `ends` of the places as well."""
        wanted: dict[str, set[int]] = {}
        needed = range(max(self.targets) + 1) if self.write in _ADDED else self.targets
        for row in needed:
            wanted.setdefault(self.read, set()).add(self.blocks[row])
            if self.write in _ADDED:
                wanted.setdefault(self.write, set()).add(self.blocks[row])
        for place in self.places if ends else ():
            wanted.setdefault(place.site, set()).add(place.block)
        if not ends and self.read == self.write and self.write not in _ADDED:
            wanted.pop(self.read)  # what an override makes of it gives it away
        with ExitStack() as stack:
            for site, blocks in wanted.items():

                def keep(block: int, tensor: Tensor, site: str = site) -> None:
                    kept[site, block] = _cls(tensor)

                stack.enter_context(self.clip.watch(keep, sorted(blocks), site))
            yield

    # -- the moved model ---------------------------------------------------------------------------------------------

    @contextmanager
    def moving(self, displace: Displace) -> Iterator[None]:
        """While active, [CLS] is displaced at every place, and keeps its length."""
        kept: dict[tuple[str, int], Tensor] = {}
        numbers = {(place.site, place.block): number for number, place in enumerate(self.places)}
        by_site: dict[str, list[int]] = {}
        for place in self.places:
            by_site.setdefault(place.site, []).append(place.block)

        def put(site: str, block: int, compute: Callable[[], Tensor]) -> Tensor:
            own = compute()
            number = numbers[site, block]
            x = _cls(own)
            codes = self._codes(kept | {(site, block): x}, self.places[number].targets)
            seen = self._seen(self.places[number], x, kept | {(site, block): x}, codes)
            new = moved(seen.x, displace(number, seen)).to(own.dtype)
            if own.ndim == 2:
                return new
            out = own.clone()
            out[:, 0] = new
            return out

        with ExitStack() as stack:
            stack.enter_context(self._watched(kept, ends=False))
            for site, blocks in by_site.items():

                def override(block: int, x: Tensor, compute: Callable[[], Tensor], site: str = site) -> Tensor:
                    return put(site, block, compute)

                stack.enter_context(self.clip.override(site, override, blocks))
            yield

    @torch.no_grad()
    def embed(self, observed: Observed, displace: Displace) -> Tensor:
        """`(images, embed_dim)`: embeddings of length 1 of observed images in the moved model."""
        if self.at_end:
            x = moved(observed.seen[0].x, displace(0, observed.seen[0]))
            if self.write == "final":
                return F.normalize(x, dim=-1)
            return self.clip.run_from(self.clip.n_layers, x.to(self.clip.dtype)[:, None])
        assert observed.entry is not None
        with self.moving(displace):
            return self.clip.run_from(self.first, observed.entry)

    # -- what the transcoder says ------------------------------------------------------------------------------------

    def _codes(self, kept: dict[tuple[str, int], Tensor], targets: Sequence[int] | None = None) -> dict[int, Codes]:
        """Codes of [CLS] of every layer that writes to the targets."""
        wanted = self.targets if targets is None else targets
        found = {}
        for row in range(max(wanted) + 1):
            if any(self.clt.writes(row, target) for target in wanted):
                x = kept[self.read, self.blocks[row]]
                found[row] = self.clt.encode_layer(x, row, torch.arange(len(x)))
        return found

    def _seen(self, place: Place, x: Tensor, kept: dict[tuple[str, int], Tensor], codes: dict[int, Codes]) -> Seen:
        clt = self.clt
        sums = torch.stack([clt.layer_sum(codes, j, self.sources) for j in place.targets])
        unit = x.new_ones(len(x), 1, dtype=torch.float32)
        if clt.normalization == "token":
            reads = [x if place.site == self.read else kept[self.read, self.blocks[j]] for j in place.targets]
            stds = torch.stack([standardise(read.to(clt.b_dec.dtype))[2] for read in reads])
            sums = sums * stds
            if self.write not in _ADDED:  # of one token; what is added to the stream is of several, and kept whole
                unit = stds[0]
        x = _wide(x)

        def rebuild() -> tuple[Tensor, Tensor]:
            y = torch.stack([_wide(kept[self.write, self.blocks[j]]) for j in place.targets])
            rebuilt = []
            for j in place.targets:
                read = kept[self.read, self.blocks[j]].to(clt.b_dec.dtype)
                rebuilt.append(clt.in_units(clt.layer_sum(codes, j), read) + clt.rest_term(read, j))
            return y, torch.stack(rebuilt).to(y)

        return Seen(x, sums.to(x), unit, rebuild)


def _cls(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 else tensor[:, 0].clone()


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()

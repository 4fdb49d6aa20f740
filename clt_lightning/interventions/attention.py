"""Sparse attention, or an autoencoder of what attention adds, in the place of a backbone's attention layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.attention_parts import attention_pattern
from clt_lightning.backbone.taps import ENTRY
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.heads import HeadProjection
from clt_lightning.transcoder import Codes
from clt_lightning.transcoder.attention import AnyAttention, AttentionOutput, SparseAttention, at_heads

PatternFn = Callable[[int, Tensor], Tensor | None]


@dataclass(frozen=True)
class AttentionSites:
    """What every attention layer of a backbone reads and adds, in the model's type.

    Attributes:
        x: `(layers, images, positions, d_model)`, `attn_in`: the normed stream.
        y: the same shape, `attn_out`.
        z: `(layers, images, positions, width)`, `attn_z`: the heads' outputs; None where they were not asked for.
    """

    x: Tensor
    y: Tensor
    z: Tensor | None = None

    def select(self, chosen: Tensor) -> AttentionSites:
        """Of some images, `(images,)` bool."""
        z = None if self.z is None else self.z[:, chosen]
        return AttentionSites(self.x[:, chosen], self.y[:, chosen], z)

    def of_heads(self) -> Tensor:
        """`z`, which must be there."""
        if self.z is None:
            raise UserError("an autoencoder of the heads' outputs needs attn_z: read_attention(..., heads=True)")
        return self.z


class AttentionWatch:
    """Keeps `AttentionSites` of a forward that runs anyway.

    Args:
        clip: the backbone.
        heads: keep the heads' outputs, too.
    """

    def __init__(self, clip: Backbone, heads: bool = False) -> None:
        self.clip = clip
        names = ("attn_in", "attn_out", *(["attn_z"] if heads else []))
        self._kept: dict[str, dict[int, Tensor]] = {name: {} for name in names}

    @contextmanager
    def active(self) -> Iterator[AttentionWatch]:
        """While active, forwards are kept."""
        with ExitStack() as stack:
            for site, kept in self._kept.items():
                stack.enter_context(self.clip.watch(kept.__setitem__, site=site))
            yield self

    def sites(self) -> AttentionSites:
        """Of the last forward, which must have run through all blocks; without images where none was run."""
        clip, found = self.clip, []
        for site, kept in self._kept.items():
            if kept:
                found.append(torch.stack([kept[layer] for layer in range(clip.n_layers)]))
            else:
                nothing = torch.zeros(clip.n_layers, 0, clip.n_positions, clip.site_width(site))
                found.append(nothing.to(clip.device))
            kept.clear()
        return AttentionSites(*found)


@torch.no_grad()
def read_attention(clip: Backbone, images: Tensor, heads: bool = False) -> AttentionSites:
    """What attention layers read and add for `images (images, 3, size, size)`; with the heads' outputs on request."""
    sites = ("attn_in", "attn_out", *(["attn_z"] if heads else []))
    found = clip.read(images, sites)
    return AttentionSites(*(found[site].unflatten(1, (len(images), clip.n_positions)) for site in sites))


@torch.no_grad()
def patterns_at(clip: Backbone, attention: SparseAttention, x: Tensor) -> list[Tensor] | None:
    """The model's patterns of every layer, as the units take them; None where they have their own.

    Args:
        clip: the backbone.
        attention: the units.
        x: `(layers, images, positions, d_model)`, `attn_in`.
    """
    if attention.d_qk is not None:
        return None
    return [attention_pattern(clip.attention_parts(layer), rows) for layer, rows in enumerate(x)]


def rebuild_attention(clip: Backbone, attention: AnyAttention, sites: AttentionSites) -> AttentionOutput:
    """What the units make of what the untouched model's attention layers read, or an autoencoder of what they add.

    What an autoencoder of the heads' outputs makes of them goes through the model's own projection.
    """
    if isinstance(attention, SparseAttention):
        x = sites.x.to(attention.W_enc.dtype)
        return attention(x, patterns_at(clip, attention, sites.x))  # type: ignore[no-any-return]
    if at_heads(attention):
        made = attention(sites.of_heads().flatten(1, 2))
        z_hat = made.y_hat.unflatten(1, sites.y.shape[1:3])
        return AttentionOutput(HeadProjection(clip)(z_hat), made.codes, [], z_hat)
    made = attention(sites.y.flatten(1, 2))
    return AttentionOutput(made.y_hat.view(sites.y.shape), made.codes, [])


def patterns_of(clip: Backbone, attention: SparseAttention) -> PatternFn:
    """`pattern(layer, attn_in)`: the model's, `(images, heads, queries, keys)`; None where the units have their own."""
    if attention.d_qk is not None:
        return lambda layer, x: None
    parts = [clip.attention_parts(layer) for layer in range(clip.n_layers)]
    return lambda layer, x: attention_pattern(parts[layer], x)


class AttentionReplacement:
    """Sparse attention at work in a forward: what `replaced(..., attention=...)` sets up.

    Args:
        clip: the backbone.
        attention: the units, of this backbone, on the same device.
        layers: blocks whose attention is replaced; None for all.
        tokens: query positions at which it is: `all`, `cls`, `register` or `patch`.
        grad: let gradients flow.
        error: whether what the units leave out in the untouched model is added back.

    Attributes:
        codes: by layer, of all positions, of the last forward; `y_hat`: by layer `(images, positions, d_model)`.
    """

    def __init__(
        self,
        clip: Backbone,
        attention: SparseAttention,
        layers: Iterable[int] | None,
        tokens: str,
        grad: bool,
        error: bool,
    ) -> None:
        self.clip, self.attention, self.grad, self.error = clip, attention, grad, error
        self.layers = sorted(clip.check_layers(layers))
        self.span = clip.tokens.span(tokens)
        self.whole = tokens == "all"
        self.pattern = patterns_of(clip, attention)
        self.codes: dict[int, Codes] = {}
        self.y_hat: dict[int, Tensor] = {}
        self.left_out: dict[int, Tensor] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """While active, forwards take the units' outputs."""
        with ExitStack() as stack:
            stack.enter_context(self.clip.taps.read(self._begin, [(ENTRY, self.layers[0])]))
            stack.enter_context(self.clip.override("attn_out", self._put, self.layers))
            yield

    def _begin(self, block: int, stream: Tensor) -> None:
        self.codes.clear()
        self.y_hat.clear()
        self.left_out.clear()
        if self.error:
            self._run_clean(block, stream)

    @torch.no_grad()
    def _run_clean(self, block: int, stream: Tensor) -> None:
        inputs: dict[int, Tensor] = {}

        def keep(layer: int, out: Tensor) -> None:
            rebuilt, _ = self._replace(layer, inputs.pop(layer))
            self.left_out[layer] = out.to(rebuilt.dtype) - rebuilt

        with self.clip.taps.aside(), ExitStack() as stack:
            stack.enter_context(self.clip.watch(lambda layer, x: inputs.update({layer: x}), self.layers, "attn_in"))
            stack.enter_context(self.clip.watch(keep, self.layers, "attn_out"))
            self.clip.run_from(block, stream.detach())

    def _put(self, layer: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
            y, self.codes[layer] = self._replace(layer, x)
            self.y_hat[layer] = y
            if self.error:
                if layer not in self.left_out:
                    raise UserError(
                        f"error='clean' needs the untouched model: run it from block {self.layers[0]} or before"
                    )
                y = y + self.left_out[layer]
            y = y.to(x.dtype)
            if self.whole:
                return y
            out = compute().clone()
            out[:, self.span] = y[:, self.span]
            return out

    def _replace(self, layer: int, x: Tensor) -> tuple[Tensor, Codes]:
        return self.attention.replace(layer, x, self.pattern(layer, x))

"""A transcoder in the place of what it rebuilds: the MLPs of a backbone, or any other site; attention beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.taps import ENTRY
from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TokenLayout
from clt_lightning.interventions.attention import AttentionReplacement
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention

TermEditor = Callable[[int, Tensor], Tensor]
"""`edit(layer, terms) -> terms`: terms are `(sources, tokens, d_model)`, sources 0..layer, without bias and skip."""

SkipFn = Callable[[int, Tensor], Tensor]
"""`skip(layer, x) -> (tokens, d_model)`: what takes the place of the linear skip."""

Error = Literal["none", "clean"]


@dataclass
class ReplacementTrace:
    """What happened inside a replaced forward; filled anew by every one.

    Layers are numbered as the transcoder numbers them: those of the backbone, if it stands at all of its blocks.

    Attributes:
        codes: the codes of each layer read so far, by layer, of the replaced tokens.
        y_hat: what was put in the place of each layer's site, without the error, by layer, `(tokens, d_out)`.
        attention: the codes of sparse attention, by block, of all tokens; of an autoencoder of the replaced ones.
        attention_hat: what it rebuilt, without the error, by block, `(images, positions, d_model)` of these tokens; of
            an autoencoder at `attn_z` the heads' outputs, `(images, positions, width)`.
    """

    codes: dict[int, Codes] = field(default_factory=dict)
    y_hat: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Codes] = field(default_factory=dict)
    attention_hat: dict[int, Tensor] = field(default_factory=dict)


def check_fit(clip: Backbone, clt: CrossLayerTranscoder) -> tuple[int, ...]:
    """Whether a transcoder is one for this backbone.

    Returns:
        the backbone's block of each of the transcoder's layers; a single 0 for a site that the model has once.

    Raises:
        UserError: they have other numbers of layers or other widths.
    """
    sites = clt.sites
    layers = sites.resolve(clip.n_layers, clip.name)
    sized = ("attn_z", "final")
    widths = [clip.site_width(str(s)) if s in sized else clip.d_model for s in (sites.read, sites.write)]
    if (clt.n_layers, clt.d_model) != (len(layers), widths[0]):
        raise UserError(
            f"the transcoder is for {clt.n_layers} layers of width {clt.d_model}, "
            f"the backbone {clip.name!r} has {len(layers)} of width {widths[0]}"
        )
    if clt.cls_weight != 1 and not clip.has_cls:
        raise UserError(f"the transcoder weights [CLS] (cls_weight), and the backbone {clip.name!r} has none")
    if clt.n_positions is not None and clt.n_positions != clip.n_positions:
        raise UserError(
            f"the transcoder weights [CLS] among {clt.n_positions} tokens of an image, the backbone {clip.name!r} has "
            f"{clip.n_positions}"
        )
    if clt.d_out != widths[1]:
        raise UserError(
            f"the transcoder rebuilds vectors of width {clt.d_out}, {sites.write} of the backbone {clip.name!r} has "
            f"{widths[1]}"
        )
    return layers


def check_attention_fit(clip: Backbone, attention: AnyAttention) -> None:
    """Whether sparse attention, or an autoencoder of what attention adds, is for this backbone.

    Raises:
        UserError: they have other numbers of layers or heads, or other widths, the backbone's patterns are not known,
            or the autoencoder is one of another site.
    """
    if not isinstance(attention, SparseAttention):
        blocks, site = check_fit(clip, attention), str(attention.sites.write)
        if attention.topology != "sae" or site not in ("attn_out", "attn_z") or len(blocks) != clip.n_layers:
            raise UserError(
                "for attention there are units (SparseAttention), or features of an autoencoder at attn_out of all "
                f"{clip.n_layers} blocks, or at attn_z of these; this transcoder is of topology '{attention.topology}' "
                f"at {site} of {len(blocks)} (see configs/site/attention.yaml)"
            )
        return
    if (attention.n_layers, attention.d_model) != (clip.n_layers, clip.d_model):
        raise UserError(
            f"the sparse attention is for {attention.n_layers} layers of width {attention.d_model}, the backbone "
            f"{clip.name!r} has {clip.n_layers} of width {clip.d_model}"
        )
    if attention.d_qk is not None:
        return
    heads = {clip.attention_parts(layer).n_heads for layer in range(clip.n_layers)}
    if heads != {attention.n_heads}:
        raise UserError(
            f"the sparse attention moves by the patterns of {attention.n_heads} heads, the backbone {clip.name!r} has "
            f"{', '.join(map(str, sorted(heads)))}"
        )


def cls_among(clip: Backbone, clt: CrossLayerTranscoder, tokens: str) -> bool | None:
    """Whether [CLS] is the first of an image's replaced tokens; None where the transcoder does not ask."""
    return None if clt.cls_weight == 1 else clip.tokens.span(tokens).start == 0


def tokens_of(clip: Backbone, clt: CrossLayerTranscoder) -> TokenLayout:
    """Which token is what at a transcoder's sites: the backbone's own; at `final` one vector per image, as of [CLS]."""
    return TokenLayout(0) if clt.sites.read == "final" else clip.tokens


@contextmanager
def replaced(
    clip: Backbone,
    clt: CrossLayerTranscoder | None,
    layers: Iterable[int] | None = None,
    tokens: str = "all",
    edit: TermEditor | None = None,
    skip: SkipFn | None = None,
    grad: bool = False,
    error: Error = "none",
    attention: AnyAttention | None = None,
    attention_layers: Iterable[int] | None = None,
    known: Mapping[int, Codes] | None = None,
) -> Iterator[ReplacementTrace]:
    """While active, the transcoder's reconstruction stands in the place of the site that it rebuilds.

    That is the MLPs' outputs, where no other sites were named. Cascaded: every x is read from the running, already
    modified stream. A feature of a layer before the window still writes into the window, read from the stream as it is
    there. A transcoder of topology `sae` reads the site's own tensor.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device; None: the attention alone is replaced.
        layers: the backbone's blocks whose site is replaced, of those where the transcoder stands; None for all of
            them.
        tokens: `all`, `cls`, `register` or `patch`: at which positions; the others keep the site's own tensor.
        edit: changes the terms of a target layer before they are summed (faithfulness, steering).
        skip: takes the place of the linear skip path; None: the transcoder's own.
        grad: let gradients flow (with `clip.encode_image(images, grad=True)`).
        error: `clean` adds back what the reconstruction leaves out in the untouched model (which runs once more, on the
            same images): with nothing else changed, the numbers are the untouched model's. `none` adds nothing.
        attention: what stands in the place of the attention too (docs/attention.md): sparse attention, which moves by
            the patterns of the running stream, or an autoencoder at `attn_out` (or `attn_z`), which reads what the
            attention (or its heads) makes of that stream.
        attention_layers: the blocks whose attention is replaced; None: `layers`.
        known: codes of the replaced tokens, by layer of the transcoder, that are not made anew: those of layers whose
            input no replaced site comes before.

    Yields:
        the trace of the last forward.

    Raises:
        UserError: transcoder, sparse attention and backbone do not fit, unknown layers or token set, or nothing to
            put in.
    """
    if clt is None and (attention is None or edit is not None or skip is not None):
        raise UserError("replaced: without a transcoder (clt=None) give attention=..., and neither edit nor skip")
    if attention is None and attention_layers is not None:
        raise UserError("replaced: attention_layers without attention=...: give what to put there")
    if clt is not None and attention is not None and {clt.sites.read, clt.sites.write} & {"attn_z", "attn_out"}:
        raise UserError(
            f"replaced: the transcoder stands at {clt.sites.write}, in the attention that attention=... replaces: give "
            "one of the two"
        )
    chosen = None if layers is None else list(layers)
    trace = ReplacementTrace()
    with ExitStack() as stack:
        if attention is not None:
            check_error(error)
            blocks = chosen if attention_layers is None else attention_layers
            check_attention_fit(clip, attention)
            heads: AttentionReplacement | _AutoencoderReplacement
            if isinstance(attention, SparseAttention):
                heads = AttentionReplacement(clip, attention, blocks, tokens, grad, error == "clean")
                trace.attention, trace.attention_hat = heads.codes, heads.y_hat
            else:
                own = ReplacementTrace(trace.attention, trace.attention_hat)
                heads = _AutoencoderReplacement(clip, attention, blocks, tokens, grad=grad, error=error, trace=own)
            stack.enter_context(heads.active())
        if clt is not None:
            stack.enter_context(Replacement(clip, clt, chosen, tokens, edit, skip, grad, error, trace, known).active())
        yield trace


def check_error(error: str) -> None:
    """Whether it is a way to treat errors.

    Raises:
        UserError: it is none.
    """
    if error not in ("none", "clean"):
        raise UserError(f"error must be none or clean, got {error!r}")


@dataclass
class _Clean:
    """The untouched model at the two sites, and its codes, by layer: the replaced tokens alone."""

    x: dict[int, Tensor] = field(default_factory=dict)
    y: dict[int, Tensor] = field(default_factory=dict)
    codes: dict[int, Codes] = field(default_factory=dict)


class Replacement:
    """One `replaced`, with what it keeps of a forward under way."""

    def __init__(
        self,
        clip: Backbone,
        clt: CrossLayerTranscoder,
        layers: Iterable[int] | None,
        tokens: str,
        edit: TermEditor | None = None,
        skip: SkipFn | None = None,
        grad: bool = False,
        error: Error = "none",
        trace: ReplacementTrace | None = None,
        known: Mapping[int, Codes] | None = None,
    ) -> None:
        self.clip, self.clt = clip, clt
        self.known = known or {}
        self.edit, self.skip, self.grad = edit, skip, grad
        self.read, self.write = str(clt.sites.read), str(clt.sites.write)
        self.blocks = check_fit(clip, clt)
        self.rows = {block: row for row, block in enumerate(self.blocks)}
        self.window = self._window(layers)
        self.whole = tokens == "all"
        span = clip.tokens.span(tokens)
        self.span_size = span.stop - span.start
        if self.write == "final" and not self.whole:
            raise UserError(f"the site final is one vector per image: tokens must be all, got {tokens!r}")
        self.span = slice(None) if self.whole else span
        check_error(error)
        self.error = error
        self.cls_of_image = cls_among(clip, clt, tokens)
        self.trace = ReplacementTrace() if trace is None else trace
        self.inputs: dict[int, Tensor] = {}
        self.clean = _Clean()
        # features of layers before the window write into it, so these layers are read as well
        first = 0 if clt.topology == "cross_layer" else min(self.rows[block] for block in self.window)
        self.to_read = self.blocks[first : max(self.rows[block] for block in self.window) + 1]

    def _window(self, layers: Iterable[int] | None) -> list[int]:
        if layers is None or self.clt.sites.once:
            return list(self.blocks)
        wanted = sorted(self.clip.check_layers(layers))
        missing = [block for block in wanted if block not in self.rows]
        if missing:
            raise UserError(f"layers {missing}: this transcoder stands at blocks {list(self.blocks)} alone")
        return wanted

    @contextmanager
    def active(self) -> Iterator[None]:
        entry = self.clip.n_layers - 1 if self.clt.sites.once else self.to_read[0]
        with ExitStack() as stack:
            if self.grad:
                stack.enter_context(self.clt.one_gradient())
            stack.enter_context(self.clip.taps.read(self._begin, [(ENTRY, entry)]))
            if self.read != self.write:
                stack.enter_context(self.clip.watch(self.see, self.to_read, self.read))
            stack.enter_context(self.clip.override(self.write, self._put, self.window))
            yield

    def _begin(self, block: int, stream: Tensor) -> None:
        self.trace.codes.clear()
        self.trace.y_hat.clear()
        self.inputs.clear()
        if self.error == "clean":
            self.clean = self._run_clean(block, stream)

    def _run_clean(self, block: int, stream: Tensor) -> _Clean:
        """The untouched model from the entry of a block on: what it has at the two sites."""
        found = _Clean()
        with torch.no_grad(), self.clip.taps.aside(), ExitStack() as stack:
            if self.read != self.write:
                keep = lambda of, x: found.x.update({self.rows[of]: self._flat(x)})  # noqa: E731
                stack.enter_context(self.clip.watch(keep, self.to_read, self.read))
            keep_y = lambda of, y: found.y.update({self.rows[of]: self._flat(y)})  # noqa: E731
            stack.enter_context(self.clip.watch(keep_y, self.to_read, self.write))
            self.clip.run_from(block, stream.detach())
            found.x = found.x or found.y
            if self.read != self.write:
                found.codes = {row: self._encoded(x, row) for row, x in found.x.items()}
        return found

    def see(self, block: int, x: Tensor) -> None:
        """Takes in what is read in a block, `(images, positions, d_in)`."""
        with self._grad():
            row = self.rows[block]
            self.inputs[row] = self._flat(x)
            known = self.known.get(row)
            self.trace.codes[row] = self._encoded(self.inputs[row], row) if known is None else known

    def reads_own(self, block: int) -> bool:
        """Whether what is read in a block is there only once the site's own tensor is: it, or a part of it."""
        return self.read == self.write or self.rows[block] not in self.inputs

    def made(self, block: int) -> Tensor:
        """What stands at the replaced tokens of a block that was seen, `(tokens, d_out)`."""
        with self._grad():
            row = self.rows[block]
            y_hat = self._rebuilt(row, self.trace.codes, self.inputs.pop(row), self.edit)
            self.trace.y_hat[row] = y_hat
            return y_hat + self._left_out(row) if self.error == "clean" else y_hat

    def _put(self, block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        with self._grad():
            own = compute() if self.reads_own(block) or not self.whole else None
            if self.read == self.write:
                assert own is not None
                self.see(block, own)
            y_hat = self.made(block)
            shape = x.shape if own is None else own.shape
            y_hat = y_hat.view(shape[0], *([-1] if len(shape) == 3 else []), self.clt.d_out).to(x.dtype)
            if own is None or self.whole:
                return y_hat
            out = own.clone()
            out[:, self.span] = y_hat
            return out

    def _rebuilt(self, row: int, codes: dict[int, Codes], x: Tensor, edit: TermEditor | None) -> Tensor:
        """The reconstruction of a layer, `(tokens, d_out)`."""
        clt = self.clt
        sources = {i: codes[i] for i in range(row + 1) if clt.writes(i, row)}
        if edit is None:
            added = clt.in_units(clt.layer_sum(sources, row), x)
        else:
            added = edit(row, clt.in_units(clt.layer_terms(sources, row), x)).sum(0)
        return added + (clt.rest_term(x, row) if self.skip is None else clt.bias(row) + self.skip(row, x))

    @torch.no_grad()
    def _left_out(self, row: int) -> Tensor:
        """What the reconstruction leaves out in the untouched model, `(tokens, d_out)`."""
        clean = self.clean
        if row not in clean.y:
            raise UserError(f"error='clean' needs the untouched model: run it from block {self.to_read[0]} or before")
        if self.read == self.write:
            clean.codes[row] = self._encoded(clean.y[row], row)
        return clean.y[row] - self._rebuilt(row, clean.codes, clean.x[row], None)

    def _encoded(self, x: Tensor, row: int) -> Codes:
        """Codes of a layer at the replaced positions, `x (tokens, width)`."""
        per_image, cls = self.span_size, None
        if self.cls_of_image is not None and per_image:
            first = torch.arange(0, len(x), per_image, device=x.device)
            cls = first if self.cls_of_image else first[:0]
        return self.clt.encode_layer(x, row, cls)

    def _flat(self, site: Tensor) -> Tensor:
        """The replaced positions of a site, `(tokens, width)`."""
        return site if site.ndim == 2 else site[:, self.span].reshape(-1, site.shape[-1])

    def _grad(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(self.grad and torch.is_grad_enabled())


class _AutoencoderReplacement(Replacement):
    """One of an autoencoder beside a transcoder: what it rebuilt is kept by image, as sparse attention's is."""

    def made(self, block: int) -> Tensor:
        result = super().made(block)
        row = self.rows[block]
        self.trace.y_hat[row] = self.trace.y_hat[row].unflatten(0, (-1, self.span_size))
        return result

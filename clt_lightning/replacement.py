"""A transcoder in the place of CLIP's MLPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clt_lightning.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

TermEditor = Callable[[int, Tensor], Tensor]
"""`edit(layer, terms) -> terms`: terms are `(sources, tokens, d_model)`, sources 0..layer, without bias and skip."""

SkipFn = Callable[[int, Tensor], Tensor]
"""`skip(layer, x) -> (tokens, d_model)`: what takes the place of the linear skip."""


@dataclass
class ReplacementTrace:
    """What happened inside a replaced forward; filled anew by every one.

    Attributes:
        codes: the codes of each layer read so far, by layer, of the replaced tokens.
        y_hat: what was added to the stream instead of the MLP's output, by layer, `(tokens, d_model)`.
    """

    codes: dict[int, Codes] = field(default_factory=dict)
    y_hat: dict[int, Tensor] = field(default_factory=dict)


def check_fit(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    """Whether a transcoder is one for this backbone.

    Raises:
        UserError: they have other numbers of layers or other widths.
    """
    if (clt.n_layers, clt.d_model) != (clip.n_layers, clip.d_model):
        raise UserError(
            f"the transcoder is for {clt.n_layers} layers of width {clt.d_model}, "
            f"the backbone {clip.name!r} has {clip.n_layers} of width {clip.d_model}"
        )


@contextmanager
def replaced(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    layers: Iterable[int] | None = None,
    tokens: str = "all",
    edit: TermEditor | None = None,
    skip: SkipFn | None = None,
    grad: bool = False,
) -> Iterator[ReplacementTrace]:
    """While active, the transcoder's reconstruction is added to the residual stream instead of the MLPs' outputs.

    Cascaded: every x is read from the running, already modified stream. A feature of a layer before the window still
    writes into the window, read from the stream as it is there. A topology of `sae` reads the MLP's own output.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device.
        layers: the MLPs to replace; None for all.
        tokens: `all`, `cls` or `patch`: at which positions; the others keep the MLP's own output.
        edit: changes the terms of a target layer before they are summed (faithfulness, steering).
        skip: takes the place of the linear skip path; None: the transcoder's own.
        grad: let gradients flow (with `clip.encode_image(images, grad=True)`).

    Yields:
        the trace of the last forward.

    Raises:
        UserError: transcoder and backbone do not fit, unknown layers or token set.
    """
    check_fit(clip, clt)
    if tokens not in ("all", "cls", "patch"):
        raise UserError(f"tokens must be all, cls or patch, got {tokens!r}")
    window = set(clip.check_layers(layers))
    positions = {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}[tokens]
    trace = ReplacementTrace()

    def linear(x: Tensor, layer: int) -> Tensor:
        return clt.skip_term(x, layer) if skip is None else skip(layer, x)

    def read(site: Tensor) -> Tensor:
        return site[:, positions].reshape(-1, clt.d_model)

    def watch(layer: int, x: Tensor) -> None:
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            if layer == first_read:
                trace.codes.clear()
                trace.y_hat.clear()
            if clt.topology != "sae":
                trace.codes[layer] = clt.encode_layer(read(x), layer)

    def branch(layer: int, x: Tensor, compute_y: Callable[[], Tensor]) -> Tensor:
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            y = compute_y() if tokens != "all" or clt.topology == "sae" else None
            if clt.topology == "sae":
                assert y is not None
                trace.codes[layer] = clt.encode_layer(read(y), layer)
            sources = {i: trace.codes[i] for i in range(layer + 1) if clt.writes(i, layer)}
            if edit is None:
                y_hat = clt.layer_sum(sources, layer)
            else:
                y_hat = edit(layer, clt.layer_terms(sources, layer)).sum(0)
            y_hat = y_hat + clt.b_dec[layer]
            if skip is not None or clt.skip:
                y_hat = y_hat + linear(read(x), layer)
            trace.y_hat[layer] = y_hat
            y_hat = y_hat.view(x.shape[0], -1, clt.d_model).to(x.dtype)
            if y is None or tokens == "all":
                return y_hat
            return torch.cat([y_hat, y[:, 1:]], 1) if tokens == "cls" else torch.cat([y[:, :1], y_hat], 1)

    # features of layers before the window write into it, so these layers are read as well
    first_read = 0 if clt.topology == "cross_layer" else min(window)
    with (
        clt.one_gradient() if grad else nullcontext(),
        clip.watch(watch, range(first_read, max(window) + 1)),
        clip.mlp_override(branch, sorted(window)),
    ):
        yield trace

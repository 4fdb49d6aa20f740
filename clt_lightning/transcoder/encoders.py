"""Encoding: which features of each layer fire on a token, and how strongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clt_lightning.transcoder.activations import Activation
from clt_lightning.transcoder.buffers import GradientBuffers
from clt_lightning.transcoder.costs import SPARSE_ENCODING
from clt_lightning.transcoder.favoured import Favoured
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.requests import AuxiliaryRequest, EncodedLayer
from clt_lightning.transcoder.screening import Chosen, Screen, settle_all
from clt_lightning.transcoder.shared import Shared
from clt_lightning.transcoder.sparse import encode_pairs

Backend = Literal["auto", "sparse", "dense"]


class SparseEncoders(nn.Module):
    """One sparse encoder per layer, `z[l] = activation(W_enc[l] x[l] + b_enc[l])`: the half of a transcoder that reads.

    The product with `W_enc` runs over all features without gradients; only what fires (and what AuxK asks for) gets
    one, unless codes are so many that the dense path is the faster one.

    Attributes:
        n_layers: L.
        W_enc: one `(F, d_model)` per layer.
        b_enc: `(layers, F)`.
        activation: which pre-activations become codes.
        backend: `auto` chooses the sparse path by density, `sparse` and `dense` force one.
        gradients: memory for the weights' gradients.
    """

    n_layers: int
    W_enc: nn.ParameterList
    b_enc: nn.Parameter
    activation: Activation
    backend: Backend
    gradients: GradientBuffers
    _shared: dict[tuple[str, int], Shared] | None = None

    def shared(self, name: Literal["W_enc", "W_dec"], layer: int) -> Shared:
        """A layer's weight, with the place for its gradient: one within `one_gradient`, else a new one."""
        key = (name, layer)
        if self._shared is None or not torch.is_grad_enabled():
            return Shared(getattr(self, name)[layer], self.gradients, key)
        if key not in self._shared:
            self._shared[key] = Shared(getattr(self, name)[layer], self.gradients, key)
        return self._shared[key]

    @contextmanager
    def one_gradient(self) -> Iterator[None]:
        """All that is computed within writes one gradient of each weight, into one memory; one within another joins it.

        For what is differentiated together: a gradient that is handed out and kept is not added to afterwards.
        """
        if self._shared is not None:
            yield
            return
        self._shared = {}
        try:
            yield
        finally:
            self._shared = None

    def _encode(
        self,
        scaled: Tensor,
        low: torch.dtype | None,
        want_pre: bool = False,
        auxiliary: AuxiliaryRequest | None = None,
        favoured: Favoured | None = None,
    ) -> list[EncodedLayer]:
        layers, scratch = range(self.n_layers), None
        if low is not None and not want_pre and self.backend != "dense":
            chosen = [self._screened(scaled[i], i, low, favoured) for i in layers]
            if scaled.is_cuda:  # whose host waits once for all layers
                settled = iter(settle_all([c for c in chosen if c is not None]))
                chosen = [None if c is None else next(settled) for c in chosen]
            return [
                self._in_full(scaled[i], i, auxiliary, favoured)
                if c is None
                else self._take(scaled[i], i, c, auxiliary, favoured)
                for i, c in enumerate(chosen)
            ]
        if not want_pre and self._surely_sparse():
            scratch = self._scratch(scaled[0])
        return [self._encode_layer(scaled[i], i, want_pre, auxiliary, scratch, favoured) for i in layers]

    def _encode_alone(
        self, x: Tensor, layer: int, low: torch.dtype | None, favoured: Favoured | None = None
    ) -> EncodedLayer:
        """One layer's codes, from its scaled inputs `(tokens, d_model)`."""
        chosen = None if low is None or self.backend == "dense" else self._screened(x, layer, low, favoured)
        if chosen is not None:
            return self._take(x, layer, chosen.settled(), favoured=favoured)
        scratch = self._scratch(x) if self._surely_sparse() else None
        return self._encode_layer(x, layer, scratch=scratch, favoured=favoured)

    def _scratch(self, x: Tensor) -> Tensor:
        """`(tokens, F)` for pre-activations: one buffer for all layers, since what is chosen from it is copied out."""
        shape = x.shape[0], self.W_enc[0].shape[0]
        if not self.training:
            return x.new_empty(shape)
        # kept between steps: fresh memory costs as much as the bias that is written to it first
        return self.gradients.room("pre", shape, x)

    def _in_full(
        self, x: Tensor, layer: int, auxiliary: AuxiliaryRequest | None, favoured: Favoured | None
    ) -> EncodedLayer:
        """A layer's codes from an fp32 product, where one in low precision was of no use."""
        encoded = self._encode_layer(x, layer, auxiliary=auxiliary, favoured=favoured)
        return replace(encoded, repeated=torch.tensor(len(x), device=x.device))

    def _screened(self, x: Tensor, layer: int, low: torch.dtype, favoured: Favoured | None) -> Chosen | None:
        """What the activation chooses from a product in low precision; None where an fp32 product is to be made."""
        with torch.no_grad():
            chosen = self._choose(Screen(x, self.W_enc[layer], self.b_enc[layer], low, favoured), layer)
        # at once, where nothing is waited for: a choice that is open holds the layer's product
        return chosen if chosen is None or x.is_cuda else chosen.settled()

    def _take(
        self,
        x: Tensor,
        layer: int,
        chosen: Chosen,
        auxiliary: AuxiliaryRequest | None = None,
        favoured: Favoured | None = None,
    ) -> EncodedLayer:
        """The codes of what was chosen."""
        dead = None
        if favoured is not None:  # back from what the choice was made by
            chosen = replace(chosen, values=chosen.values / favoured.weights(x)[chosen.pairs.tokens])
        if auxiliary is not None:
            tokens = auxiliary.tokens

            def entries(features: Tensor) -> Tensor:
                return F.linear(x[tokens], self.W_enc[layer][features], self.b_enc[layer, features])

            with torch.no_grad():
                dead = self._select_dead(entries, layer, auxiliary)
        return self._encode_chosen(self._encoder_input(x), layer, chosen, auxiliary, dead)

    def _encode_layer(
        self,
        x: Tensor,
        layer: int,
        want_pre: bool = False,
        auxiliary: AuxiliaryRequest | None = None,
        scratch: Tensor | None = None,
        favoured: Favoured | None = None,
    ) -> EncodedLayer:
        W, b, x = self.W_enc[layer], self.b_enc[layer], self._encoder_input(x)
        dense_gradient = want_pre or not self._surely_sparse()
        with torch.set_grad_enabled(torch.is_grad_enabled() and dense_gradient):
            if scratch is not None:
                pre = torch.addmm(b.detach(), x.detach(), W.detach().t(), out=scratch)
            else:
                pre = F.linear(x, W, b)
        known = pre.detach()
        with nullcontext() if favoured is None else favoured.applied(known):
            selected = self._select(known, layer)
        dead = None
        if auxiliary is not None:
            rows = auxiliary.tokens[:, None]
            dead = self._select_dead(lambda features: known[rows, features], layer, auxiliary)
        if self._use_dense(selected, pre, want_pre):
            pairs = None if dead is None else dead[0]
            return self._encode_densely(pre, selected, layer, auxiliary, pairs)
        pairs = selected if isinstance(selected, Pairs) else Pairs.from_mask(selected)
        return self._encode_chosen(x, layer, Chosen(pairs, pairs.entries(known)), auxiliary, dead)

    def _encode_chosen(
        self,
        x: Tensor,
        layer: int,
        chosen: Chosen,
        auxiliary: AuxiliaryRequest | None,
        dead: tuple[Pairs, Tensor] | None,
    ) -> EncodedLayer:
        pairs, active, inputs, every = chosen.pairs, chosen.values, x, chosen.pairs
        n_active = pairs.features.numel()
        if auxiliary is not None and dead is not None:
            active = torch.cat([active, dead[1]])
            every, inputs = Pairs.cat(pairs, dead[0]), torch.cat([x, x[auxiliary.tokens]])
        active = encode_pairs(active, inputs, self.shared("W_enc", layer), self.b_enc[layer], every)
        values = self.activation.values(active[:n_active], pairs.features, layer)
        silent = None if dead is None else (dead[0], torch.relu(active[n_active:]))
        return EncodedLayer(pairs, values, None, silent, chosen.repeated)

    def _encode_densely(
        self, pre: Tensor, selected: Pairs | Tensor, layer: int, auxiliary: AuxiliaryRequest | None, dead: Pairs | None
    ) -> EncodedLayer:
        if isinstance(selected, Pairs):
            mask = torch.zeros_like(pre, dtype=torch.bool)
            mask[selected.tokens, selected.features] = True
            selected = mask
        codes = torch.where(selected, self.activation.values(pre, None, layer), pre.new_zeros(()))
        if auxiliary is None or dead is None:
            return EncodedLayer(None, codes, pre)
        return EncodedLayer(None, codes, pre, (dead, torch.relu(pre[auxiliary.tokens[dead.tokens], dead.features])))

    def _encoder_input(self, x: Tensor) -> Tensor:
        """What this process's encoders read: x; where features are divided, with the gradients of all processes."""
        return x

    def _select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        return self.activation.select(pre, layer)

    def _choose(self, screen: Screen, layer: int) -> Chosen | None:
        return self.activation.choose(screen, layer)

    def _select_dead(
        self, entries: Callable[[Tensor], Tensor], layer: int, request: AuxiliaryRequest
    ) -> tuple[Pairs, Tensor]:
        """The dead features with the largest pre-activations for each auxiliary token, and these.

        Args:
            entries: the auxiliary tokens' pre-activations `(auxiliary tokens, n)` of n features.
            layer: which layer's.
            request: what was asked for.
        """
        dead = request.dead[layer]
        # sorted, not searched for: their number is known, and a GPU need not be waited for
        features = torch.argsort(dead, descending=True, stable=True)[: request.count(layer)]
        top = torch.topk(entries(features), min(request.k, features.numel()), dim=1, sorted=False)
        return Pairs.rectangular(features[top.indices], self.W_enc[layer].shape[0]), top.values.flatten()

    def _surely_sparse(self) -> bool:
        """Whether pairs are encoded whatever the data."""
        if self.backend != "auto":
            return self.backend == "sparse"
        bound = self.activation.most_active
        return bound is not None and bound < SPARSE_ENCODING * self.W_enc[0].shape[0]

    def _use_dense(self, selected: Pairs | Tensor, pre: Tensor, want_pre: bool) -> bool:
        if want_pre or self.backend == "dense":
            return True
        if self._surely_sparse() or pre.numel() == 0:
            return False
        active = selected.features.numel() if isinstance(selected, Pairs) else int(selected.sum())
        return active >= SPARSE_ENCODING * pre.numel()

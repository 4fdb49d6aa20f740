"""Decoding: what active features add to each layer that they write to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.costs import dense_type, sparse_below
from clt_lightning.transcoder.encoders import SparseEncoders
from clt_lightning.transcoder.precision import full_precision
from clt_lightning.transcoder.reference import decode_dense
from clt_lightning.transcoder.sparse import Part, decode_pairs, decode_parts, dense_term

Topology = Literal["cross_layer", "per_layer", "sae"]


class SparseDecoders(SparseEncoders):
    """Encoders with triangular decoders: `sum over i <= j of W_dec[i -> j] z[i]` for each layer j.

    Attributes:
        topology: which later layers a feature writes to.
        d_out: width of what is rebuilt.
        W_dec: one `(F, targets, d_out)` per layer.
        b_dec: `(layers, d_out)`, in scaled units, as `W_dec` is.
        y_scale: `(layers,)`, from scaled units to the backbone's.
    """

    topology: Topology
    d_out: int
    W_dec: nn.ParameterList
    b_dec: nn.Parameter
    y_scale: Tensor
    #: Called before rows `(n,)` (may repeat; None: all) of a layer's decoder are read, for what changes them late
    before_read: Callable[[int, Tensor | None], None] | None = None

    def bias(self, layer: int, like: Float[Tensor, "*shape"] | None = None) -> Float[Tensor, " d_out"]:
        """`b_dec` of a layer, `(d_out,)`, in the backbone's units; of the type of `like` and where it is."""
        like = self.b_dec if like is None else like
        return self.b_dec[layer].to(like) * self.y_scale[layer].to(like)

    def n_targets(self, source: int) -> int:
        """Number of layers that features of layer `source` write to: `source .. source + n_targets - 1`."""
        return self.n_layers - source if self.topology == "cross_layer" else 1

    def writes(self, source: int, target: int) -> bool:
        """Whether features of layer `source` write to layer `target`."""
        return 0 <= target - source < self.n_targets(source)

    def decoder_norms(self) -> Float[Tensor, "layers features"]:
        """`(layers, F)`: norm of each feature's concatenated decoders, in scaled units; differentiable.

        The concatenation is what a sparsity penalty must weigh by: with unit norms a column, a feature that writes to
        12 layers would cost no more than one that writes to a single layer.
        """
        # 1e-12 keeps the square root's gradient finite at the zero decoders of the start
        return torch.stack([(W.square().sum((1, 2)) + 1e-12).sqrt() for W in self.W_dec])

    @torch.no_grad()
    def code_gradients(
        self, codes: Codes, gradient: Float[Tensor, "layers tokens d_out"]
    ) -> list[Float[Tensor, " pairs"]]:
        """How fast `<gradient, y_hat>` grows with each active code: what one more unit of it would add.

        Args:
            codes: `(layers, tokens, F)`.
            gradient: `(layers, tokens, d_model)` in the backbone's units, e.g. of a logit by every MLP output.

        Returns:
            one `(pairs,)` per layer, in the order of `codes.layer(l)`: the sum over targets j of
            `<gradient[j], W_dec[l -> j]>`.
        """
        layers = [codes.layer(layer) for layer in range(self.n_layers)]
        scaled = gradient.to(self.b_dec.dtype) * self.y_scale[:, None, None]
        # inference mode's tensors never enter a graph: copies do
        with torch.inference_mode(False), torch.enable_grad(), full_precision(codes.device.type):
            leaves = [values.detach().to(scaled, copy=True).requires_grad_() for _, values in layers]
            y = decode_pairs(self.n_layers, [p for p, _ in layers], leaves, [W.detach() for W in self.W_dec])
            return list(torch.autograd.grad(y, leaves, scaled.clone()))

    @torch.no_grad()
    def rows(self, source: int, features: Int[Tensor, " n"], target: int) -> Float[Tensor, "n d_out"]:
        """What code 1 of some features adds to a target layer: `(len(features), d_model)`, in the backbone's units."""
        rows: Tensor = self.W_dec[source][features, target - source]
        return rows * self.y_scale[target]

    def layer_terms(
        self, codes: Mapping[int, Codes] | Sequence[Codes], target: int
    ) -> Float[Tensor, "sources tokens d_out"]:
        """What the layers up to `target` add to it, from single-layer codes (`encode_layer`).

        Args:
            codes: single-layer `Codes` by layer; at least those of the layers that write to `target`.
            target: layer j.

        Returns:
            `(target + 1, tokens, d_model)`; their sum + `bias(target)` (+ skip) is `y_hat[target]`.
        """
        return torch.stack(
            [
                self._sum_of({source: codes[source]}, target)
                if self.writes(source, target)
                else self.b_dec.new_zeros(codes[target].n_tokens, self.d_out)
                for source in range(target + 1)
            ]
        )

    def layer_sum(
        self, codes: Mapping[int, Codes] | Sequence[Codes], target: int, sources: Collection[int] | None = None
    ) -> Float[Tensor, "tokens d_out"]:
        """The sum of `layer_terms`, `(tokens, d_model)`, without the memory of the terms.

        Args:
            codes, target: as there.
            sources: the layers whose terms are summed, of which one at least writes to the target; None: all.
        """
        wanted = (i for i in range(target + 1) if self.writes(i, target) and (sources is None or i in sources))
        return self._sum_of({i: codes[i] for i in wanted}, target)

    def _sum_of(self, codes: Mapping[int, Codes], target: int) -> Tensor:
        """What some layers, all of which write to `target`, add to it."""
        parts, values, dense = [], [], []
        for source, own in codes.items():
            self._announce(source, own, 0)
            shared, t = self.shared("W_dec", source), target - source
            if own.is_dense(0):
                dense.append(dense_term(own.layer_values[0], shared, t))
            else:
                pairs, v = own.layer(0)
                parts.append(Part(pairs, shared, t, t + 1, 0))
                values.append(v)
        if parts:
            dense.append(decode_parts(1, parts, values)[0])
        total = dense[0] if len(dense) == 1 else torch.stack(dense).sum(0)
        return total * self.y_scale[target]

    def _announce(self, source: int, codes: Codes, layer: int) -> None:
        """Says which rows of a layer's decoder are about to be read: those of the features of one layer of `codes`."""
        if self.before_read is not None:
            self.before_read(source, None if codes.is_dense(layer) else codes.layer(layer)[0].features)

    def _decode_features(self, codes: Codes, low: torch.dtype | None) -> Tensor:
        for layer in range(self.n_layers):
            self._announce(layer, codes, layer)
        if self._decodes_densely(codes, low):
            dense = [codes.dense_layer(layer) for layer in range(self.n_layers)]
            return decode_dense(dense, list(self.W_dec), self.n_layers, dense_type(codes.device.type, low))
        layers = [codes.layer(layer) for layer in range(self.n_layers)]
        pairs, values = [p for p, _ in layers], [v for _, v in layers]
        decoders = [self.shared("W_dec", layer) for layer in range(self.n_layers)]
        return decode_pairs(self.n_layers, pairs, values, decoders)

    def _decodes_densely(self, codes: Codes, low: torch.dtype | None) -> bool:
        held = [codes.is_dense(layer) for layer in range(self.n_layers)]
        if any(held) or self.backend == "sparse" or not codes.n_tokens:
            return all(held)
        kind = codes.device.type
        active = sum(values.numel() for values in codes.layer_values)
        below = sparse_below(kind, dense_type(kind, low) or self.b_dec.dtype, codes.n_tokens)
        return bool(active >= below * self.n_layers * codes.n_tokens * self.W_dec[0].shape[0])

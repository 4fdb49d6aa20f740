"""Codes: what the encoders say of every token, sparse inside.

A layer's codes are *pairs* (token, feature, value) sorted by token, ragged: a token may have any number of them. TopK's
are rectangular by nature; the padded form `(layers, tokens, k)` is a view of the same memory then, and is built on
request for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.order import true_places
from clt_lightning.transcoder.pairs import Pairs


class Codes:
    """The codes of all layers, `(layers, tokens, n_features)`.

    A layer is held as pairs and their values, or, where most codes are active and pairs would cost more than they save,
    as a dense `(tokens, n_features)` tensor; every method serves both.

    Args:
        pairs: one `Pairs` per layer, all over the same tokens; None for a dense layer.
        values: one tensor a layer: `(pairs,)` in the order of the pairs, or `(tokens, n_features)` for a dense layer;
            may carry gradients.

    A value of exactly 0 counts as not active.
    """

    def __init__(
        self,
        pairs: Sequence[Pairs | None],
        values: Sequence[Float[Tensor, " pairs"] | Float[Tensor, "tokens features"]],
    ) -> None:
        if len(pairs) != len(values) or not pairs:
            raise UserError(f"Codes needs one Pairs and one values tensor a layer, got {len(pairs)} and {len(values)}")
        for layer, (p, v) in enumerate(zip(pairs, values)):
            if p is not None and p.features.shape != v.shape:
                raise UserError(f"layer {layer}: {tuple(v.shape)} values for {tuple(p.features.shape)} pairs")
        self.layer_values = list(values)
        self._pairs = list(pairs)

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "layers tokens features"]) -> Codes:
        """Codes of a dense `(layers, tokens, n_features)` tensor; gradients flow to its non-zero entries."""
        if dense.dim() != 3:
            raise UserError(f"dense codes are (layers, tokens, n_features), got shape {tuple(dense.shape)}")
        pairs = [Pairs.from_mask(layer != 0) for layer in dense]
        return cls(pairs, [layer[p.tokens, p.features] for layer, p in zip(dense, pairs)])

    @classmethod
    def from_topk(
        cls, values: Float[Tensor, "layers tokens k"], indices: Int[Tensor, "layers tokens k"], n_features: int
    ) -> Codes:
        """Codes of the padded form: `values` and `indices`, both `(layers, tokens, k)`."""
        if values.shape != indices.shape or values.dim() != 3:
            raise UserError(
                f"values and indices are (layers, tokens, k), got {tuple(values.shape)} and {tuple(indices.shape)}"
            )
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= n_features):
            raise UserError(f"indices must lie in 0..{n_features - 1}, got {int(indices.min())}..{int(indices.max())}")
        return cls([Pairs.rectangular(i, n_features) for i in indices], [v.reshape(-1) for v in values])

    @classmethod
    def cat(cls, first: Codes, second: Codes) -> Codes:
        """The codes of two sets of tokens, one after the other; a layer that is dense in one is dense in both."""
        pairs: list[Pairs | None] = []
        values = []
        for layer, (p, q) in enumerate(zip(first._pairs, second._pairs)):
            if p is None or q is None:
                pairs.append(None)
                values.append(torch.cat([first.dense_layer(layer), second.dense_layer(layer)]))
            else:
                pairs.append(Pairs.cat(p, q))
                values.append(torch.cat([first.layer_values[layer], second.layer_values[layer]]))
        return cls(pairs, values)

    # -- shape -------------------------------------------------------------------------------------------------------
    @property
    def n_layers(self) -> int:
        return len(self.layer_values)

    @property
    def n_tokens(self) -> int:
        p = self._pairs[0]
        return self.layer_values[0].shape[0] if p is None else p.n_tokens

    @property
    def n_features(self) -> int:
        p = self._pairs[0]
        return self.layer_values[0].shape[1] if p is None else p.n_features

    @property
    def shape(self) -> torch.Size:
        """`(layers, tokens, n_features)`."""
        return torch.Size((self.n_layers, self.n_tokens, self.n_features))

    @property
    def device(self) -> torch.device:
        return self.layer_values[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.layer_values[0].dtype

    def __repr__(self) -> str:
        kinds = ", ".join("dense" if p is None else str(p.features.numel()) for p in self._pairs)
        return f"Codes(shape={tuple(self.shape)}, dtype={self.dtype}, pairs per layer: {kinds})"

    # -- views -------------------------------------------------------------------------------------------------------
    def is_dense(self, layer: int) -> bool:
        """Whether a layer is held densely."""
        return self._pairs[layer] is None

    def layer(self, layer: int) -> tuple[Pairs, Float[Tensor, " pairs"]]:
        """Pairs and values `(pairs,)` of one layer; a dense layer is converted, gradients flow."""
        p, v = self._pairs[layer], self.layer_values[layer]
        if p is not None:
            return p, v
        p = Pairs.from_mask(v != 0)
        return p, v[p.tokens, p.features]

    def slice(self, layer: int) -> Codes:
        """The codes of one layer alone."""
        return Codes([self._pairs[layer]], [self.layer_values[layer]])

    def dense_layer(self, layer: int) -> Float[Tensor, "tokens features"]:
        """Dense codes of one layer, `(tokens, n_features)`; gradients flow."""
        p, v = self._pairs[layer], self.layer_values[layer]
        if p is None:
            return v
        # accumulate: a hand-made Codes may name a feature twice for one token
        return v.new_zeros(p.n_tokens, p.n_features).index_put((p.tokens, p.features), v, accumulate=True)

    def dense(self) -> Float[Tensor, "layers tokens features"]:
        """Dense view, `(layers, tokens, n_features)`; costs that much memory; gradients flow."""
        return torch.stack([self.dense_layer(layer) for layer in range(self.n_layers)])

    to_dense = dense

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        layers = [self.layer(layer) for layer in range(self.n_layers)]
        k = max((int(p.counts.max()) if p.n_tokens else 0) for p, _ in layers)
        values, indices = [], []
        for p, v in layers:
            if p.features.numel() == p.n_tokens * k and p.is_rectangular:
                values.append(v.view(p.n_tokens, k))
                indices.append(p.features.view(p.n_tokens, k))
                continue
            column = torch.arange(v.numel(), device=v.device) - p.offsets[p.tokens]
            values.append(v.new_zeros(p.n_tokens, k).index_put((p.tokens, column), v))
            indices.append(p.features.new_zeros(p.n_tokens, k).index_put((p.tokens, column), p.features))
        return torch.stack(values), torch.stack(indices)

    @property
    def values(self) -> Float[Tensor, "layers tokens k"]:
        """`(layers, tokens, k)`, k = the largest number of pairs of any token; 0 where there is none."""
        return self._padded[0]

    @property
    def indices(self) -> Int[Tensor, "layers tokens k"]:
        """`(layers, tokens, k)` int64, the features of `values`; 0 where there is none."""
        return self._padded[1]

    def detach(self) -> Codes:
        return Codes(self._pairs, [v.detach() for v in self.layer_values])

    # -- statistics --------------------------------------------------------------------------------------------------
    def l0(self) -> Int[Tensor, "layers tokens"]:
        """`(layers, tokens)` int64: number of non-zero codes of each token."""
        rows = []
        for p, v in zip(self._pairs, self.layer_values):
            active = v.detach() != 0
            if p is None:
                rows.append(active.sum(1))
            elif p.is_rectangular and p.n_tokens:
                rows.append(active.view(p.n_tokens, -1).sum(1))
            else:
                rows.append(p.counts.new_zeros(p.n_tokens).index_add_(0, p.tokens, active.to(p.counts.dtype)))
        return torch.stack(rows)

    def fired(self) -> Bool[Tensor, "layers features"]:
        """`(layers, n_features)` bool: the features with a non-zero code on any of the tokens."""
        out = torch.zeros(self.n_layers, self.n_features, dtype=torch.bool, device=self.device)
        for layer, (p, v) in enumerate(zip(self._pairs, self.layer_values)):
            if p is None:
                out[layer] = (v.detach() != 0).any(0)
            else:
                # scattered with a place beside for the others: a mask as index would wait for a GPU
                places = torch.where(v.detach() != 0, p.features, self.n_features)
                found = out.new_zeros(self.n_features + 1).index_fill_(0, places, True)
                out[layer] = found[:-1]
        return out

    def first(self, n_tokens: int) -> Codes:
        """Codes of the first tokens; gradients flow. A GPU's host waits, but for rectangular pairs.

        Args:
            n_tokens: how many, at most all.
        """
        pairs: list[Pairs | None] = []
        values = []
        for p, v in zip(self._pairs, self.layer_values):
            if p is None or n_tokens == p.n_tokens:
                pairs.append(p)
                values.append(v if p is not None else v[:n_tokens])
                continue
            end = n_tokens * (p.features.numel() // p.n_tokens) if p.is_rectangular else int(p.offsets[n_tokens])
            pairs.append(Pairs(p.features[:end], p.offsets[: n_tokens + 1], p.n_features, p.is_rectangular))
            values.append(v[:end])
        return Codes(pairs, values)

    def select_tokens(self, keep: Bool[Tensor, " tokens"]) -> Codes:
        """Codes of some tokens only.

        Args:
            keep: `(tokens,)` bool mask.
        """
        pairs: list[Pairs | None] = []
        values, kept = [], true_places(keep)
        for p, v in zip(self._pairs, self.layer_values):
            if p is None:
                pairs.append(None)
                values.append(v.index_select(0, kept))
                continue
            counts = p.counts.index_select(0, kept)
            offsets = p.offsets.new_zeros(len(kept) + 1)
            torch.cumsum(counts, 0, out=offsets[1:])
            chosen = torch.arange(int(offsets[-1]), device=offsets.device)
            shifts = p.offsets.index_select(0, kept) - offsets[:-1]
            chosen += torch.repeat_interleave(shifts, counts, output_size=len(chosen))
            pairs.append(Pairs(p.features.index_select(0, chosen), offsets, p.n_features, p.is_rectangular))
            values.append(v.index_select(0, chosen))
        return Codes(pairs, values)

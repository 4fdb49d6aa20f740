"""Codes: what the encoders say of every token, sparse inside.

A layer's codes are *pairs* (token, feature, value) sorted by token, ragged: a token may have any number of them. TopK's
are rectangular by nature; the padded form `(layers, tokens, k)` is a view of the same memory then, and is built on
request for the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.feature_chunks import FeatureChunks
from clt_lightning.transcoder.order import places_above, stable_order, true_places

# torch says so once for every process; only products that are tested here are used
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")


@dataclass(frozen=True)
class Pairs:
    """The active (token, feature) positions of one layer, sorted by token; no values.

    Attributes:
        features: `(pairs,)` int64, the feature of each pair.
        offsets: `(tokens + 1,)` int64; token n owns the pairs `offsets[n]:offsets[n + 1]`.
        n_features: F, the dictionary size.
        is_rectangular: every token owns the same number of pairs.
    """

    features: Int[Tensor, " pairs"]
    offsets: Int[Tensor, " tokens_and_1"]
    n_features: int
    is_rectangular: bool = False

    @property
    def n_tokens(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def counts(self) -> Int[Tensor, " tokens"]:
        """`(tokens,)` int64: number of pairs of each token."""
        return self.offsets.diff()

    @cached_property
    def tokens(self) -> Int[Tensor, " pairs"]:
        """`(pairs,)` int64: the token of each pair."""
        positions = torch.arange(self.n_tokens, device=self.offsets.device)
        return torch.repeat_interleave(positions, self.counts, output_size=self.features.numel())

    @cached_property
    def places(self) -> Int[Tensor, " pairs"]:
        """`(pairs,)` int64: where a flattened `(tokens, F)` tensor holds each pair."""
        return self.tokens * self.n_features + self.features

    @cached_property
    def by_feature(self) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " features_and_1"]]:
        """The same pairs in feature-major order.

        Returns:
            `order (pairs,)`, the permutation that sorts the pairs by (feature, token), and `offsets (F + 1,)`, the
            first pair of each feature in that order. Sorting is stable, so sums over a feature run in token order and
            are the same in every run.
        """
        if self.features.is_cuda:
            # a radix sort takes a pass a byte of the key, and bincount would wait for the host
            keys = self.features.to(torch.int16 if self.n_features < 2**15 - 1 else torch.int32)
            keys, order = torch.sort(keys, stable=True)
            bounds = torch.arange(self.n_features + 1, dtype=keys.dtype, device=keys.device)
            return order, torch.searchsorted(keys, bounds)
        order = stable_order(self.features, self.n_features)
        offsets = self.offsets.new_zeros(self.n_features + 1)
        torch.cumsum(torch.bincount(self.features, minlength=self.n_features), 0, out=offsets[1:])
        return order, offsets

    @cached_property
    def features_i32(self) -> Int[Tensor, " pairs"]:
        """`features` as int32: half the index traffic, and the type of the fast CPU kernels."""
        return self.features.to(torch.int32)

    @cached_property
    def offsets_i32(self) -> Int[Tensor, " tokens_and_1"]:
        return self.offsets.to(torch.int32)

    @cached_property
    def feature_major(self) -> tuple[Int[Tensor, " features_and_1"], Int[Tensor, " pairs"]]:
        """Start of each feature `(F + 1,)` and token of each pair `(pairs,)` in feature-major order, int32."""
        order, offsets = self.by_feature
        return offsets.to(torch.int32), self.tokens.index_select(0, order).to(torch.int32)

    @cached_property
    def feature_chunks(self) -> FeatureChunks:
        """The features' pairs in pieces of bounded size, for the GPU's kernels."""
        return FeatureChunks.of(self.feature_major[0], self.features.numel())

    def csr(self, by_feature: Float[Tensor, " pairs"]) -> Float[Tensor, "features tokens"]:
        """`(F, tokens)` CSR matrix of values given in feature-major order."""
        starts, tokens = self.feature_major
        size = (self.n_features, self.n_tokens)
        return torch.sparse_csr_tensor(starts, tokens, by_feature, size, check_invariants=False)

    @classmethod
    def rectangular(cls, features: Int[Tensor, "tokens k"], n_features: int) -> Pairs:
        """Pairs of a `(tokens, k)` index table."""
        tokens, k = features.shape
        offsets = torch.arange(tokens + 1, device=features.device) * k
        return cls(features.reshape(-1), offsets, n_features, is_rectangular=True)

    def columns(self, places: Int[Tensor, "tokens n"]) -> Pairs:
        """Some of rectangular pairs, as many of each token; in feature-major order without a second sort.

        Args:
            places: `(tokens, n)` int64, distinct columns of the index table.
        """
        tokens, n = places.shape
        features = self.features.view(tokens, self.features.numel() // max(tokens, 1)).gather(1, places)
        pairs = Pairs.rectangular(features, self.n_features)
        if tokens and not features.is_cuda:  # a GPU sorts faster than it would wait for the mask
            new = torch.full((tokens, self.features.numel() // tokens), -1)
            new.scatter_(1, places, torch.arange(tokens * n).view(tokens, n))
            order = new.view(-1)[self.by_feature[0]]
            # what is kept moves up; a mask as index would take twice the time
            kept = order >= 0
            moved = order.new_empty(tokens * n + 1)
            moved.scatter_(0, torch.where(kept, torch.cumsum(kept, 0) - 1, tokens * n), order)
            starts = pairs.offsets.new_zeros(self.n_features + 1)
            torch.cumsum(torch.bincount(pairs.features, minlength=self.n_features), 0, out=starts[1:])
            pairs.__dict__["by_feature"] = moved[:-1], starts
        return pairs

    def keep(self, chosen: Bool[Tensor, " pairs"]) -> Pairs:
        """Some of the pairs.

        Args:
            chosen: `(pairs,)` bool.
        """
        return self.at(true_places(chosen))

    def at(self, kept: Int[Tensor, " n"]) -> Pairs:
        """Some of the pairs.

        Args:
            kept: int64, their places among the pairs, in ascending order.
        """
        if "places" in self.__dict__:
            return Pairs._at(self.places.index_select(0, kept), self.n_tokens, self.n_features)
        tokens, features = (own.index_select(0, kept) for own in (self.tokens, self.features))
        return Pairs._of(tokens, features, self.n_tokens, self.n_features)

    def entries(self, table: Shaped[Tensor, "tokens features"]) -> Shaped[Tensor, " pairs"]:
        """`(pairs,)`: what a `(tokens, F)` tensor holds at the pairs."""
        if self.is_rectangular:
            if not self.n_tokens:
                return table.new_zeros(0)
            return table.gather(1, self.features.view(self.n_tokens, -1)).view(-1)
        if table.is_contiguous():  # one index is read faster than two
            return table.view(-1).index_select(0, self.places)
        return table[self.tokens, self.features]

    @classmethod
    def cat(cls, first: Pairs, second: Pairs) -> Pairs:
        """The pairs of two sets of tokens, one after the other."""
        features = torch.cat([first.features, second.features])
        offsets = torch.cat([first.offsets, second.offsets[1:] + first.features.numel()])
        return cls(features, offsets, first.n_features)

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "tokens features"]) -> Pairs:
        """Pairs at the true positions of a `(tokens, F)` mask."""
        if mask.device.type != "cpu":
            tokens, features = mask.nonzero(as_tuple=True)
            return cls._of(tokens, features, mask.shape[0], mask.shape[1])
        return cls._at(true_places(mask), mask.shape[0], mask.shape[1])

    @classmethod
    def above(cls, table: Float[Tensor, "tokens features"], cut: Float[Tensor, ""]) -> Pairs:
        """Pairs where a `(tokens, F)` tensor is above a number."""
        if table.device.type != "cpu":
            return cls.from_mask(table > cut[None])
        return cls._at(places_above(table, cut), table.shape[0], table.shape[1])

    @classmethod
    def largest(cls, table: Float[Tensor, "tokens features"], n: int) -> Pairs:
        """Pairs at the n largest entries of a `(tokens, F)` tensor; a GPU's host need not wait, since n is known."""
        places = torch.topk(table.flatten(), n, sorted=False).indices.sort().values
        return cls._at(places, table.shape[0], table.shape[1])

    @classmethod
    def _at(cls, places: Tensor, n_tokens: int, n_features: int) -> Pairs:
        """Pairs at places of a flattened `(tokens, F)` tensor, in ascending order."""
        tokens = torch.div(places, max(n_features, 1), rounding_mode="floor")
        pairs = cls._of(tokens, places - tokens * n_features, n_tokens, n_features)
        pairs.__dict__["places"] = places
        return pairs

    @classmethod
    def _of(cls, tokens: Tensor, features: Tensor, n_tokens: int, n_features: int) -> Pairs:
        """Pairs of known tokens, sorted by token."""
        if tokens.is_cuda:  # bincount would wait for the host
            offsets = torch.searchsorted(tokens.contiguous(), torch.arange(n_tokens + 1, device=tokens.device))
        else:
            offsets = torch.zeros(n_tokens + 1, dtype=torch.int64, device=tokens.device)
            torch.cumsum(torch.bincount(tokens, minlength=n_tokens), 0, out=offsets[1:])
        pairs = cls(features, offsets, n_features)
        pairs.__dict__["tokens"] = tokens
        return pairs


class Codes:
    """The codes of all layers, `(layers, tokens, n_features)`.

    A layer is held as pairs and their values, or, where most codes are active and pairs would cost more than they save,
    as a dense `(tokens, n_features)` tensor; every method serves both.

    Args:
        pairs: one `Pairs` a layer, all over the same tokens; None for a dense layer.
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
        values = []
        for p, v in zip(self._pairs, self.layer_values):
            if p is None:
                pairs.append(None)
                values.append(v[keep])
                continue
            chosen = keep[p.tokens]
            offsets = p.offsets.new_zeros(int(keep.sum()) + 1)
            torch.cumsum(p.counts[keep], 0, out=offsets[1:])
            pairs.append(Pairs(p.features[chosen], offsets, p.n_features, p.is_rectangular))
            values.append(v[chosen])
        return Codes(pairs, values)

"""Pairs: which features are active on which tokens of one layer, in the orders that products ask for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

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
        """Some of rectangular pairs, as many of each token.

        Args:
            places: `(tokens, n)` int64, distinct columns of the index table.
        """
        table = self.features.view(self.n_tokens, self.features.numel() // max(self.n_tokens, 1))
        return Pairs.rectangular(table.gather(1, places), self.n_features)

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

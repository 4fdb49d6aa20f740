"""Chunks of features: every pair in exactly one chunk, every chunk of a long feature in a slot of its own."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.transcoder.feature_chunks import FeatureChunks


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=12), size=st.integers(1, 9))
def test_chunks(counts: list[int], size: int) -> None:
    offsets = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    n_pairs, n_features = sum(counts), len(counts)
    chunks = FeatureChunks.of(offsets, n_pairs, size)
    expected = [max(1, -(-c // size)) for c in counts]
    assert chunks.first.tolist() == [sum(expected[:f]) for f in range(n_features + 1)]

    # the launch's bound holds them all, and what is left over is marked
    owners = [f for f, n in enumerate(expected) for _ in range(n)]
    assert len(owners) <= chunks.feature.numel() == n_features + n_pairs // size
    assert chunks.feature.tolist() == owners + [n_features] * (chunks.feature.numel() - len(owners))

    slots = [f for f, n in enumerate(expected) for _ in range(n) if n > 1]
    assert len(slots) <= chunks.slot_feature.numel()
    assert chunks.slot_feature.tolist() == slots + [n_features] * (chunks.slot_feature.numel() - len(slots))
    for f, n in enumerate(expected):
        assert int(chunks.slot[f + 1] - chunks.slot[f]) == (n if n > 1 else 0)

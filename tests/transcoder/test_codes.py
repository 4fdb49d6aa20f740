"""Sparse codes say of themselves what the dense tensor says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.pairs import Pairs

KINDS = ("ragged", "rectangular", "dense")


def made(kinds: Sequence[str], tokens: int, features: int, seed: int) -> tuple[Codes, Tensor]:
    """Codes whose layers are held in the given ways, and the same densely; some held values are 0."""
    generator = torch.Generator().manual_seed(seed)
    pairs: list[Pairs | None] = []
    values, dense = [], []
    for kind in kinds:
        full = torch.randint(-2, 3, (tokens, features), generator=generator).double()
        if kind == "dense":
            pairs.append(None)
            values.append(full)
        else:
            if kind == "ragged":
                held = Pairs.from_mask(torch.rand(tokens, features, generator=generator) < 0.4)
            else:
                k = 1 + seed % features
                order = torch.rand(tokens, features, generator=generator).argsort(1)[:, :k]
                held = Pairs.rectangular(order, features)
            keep = torch.zeros(tokens, features, dtype=torch.bool)
            keep[held.tokens, held.features] = True
            full = torch.where(keep, full, 0.0)
            pairs.append(held)
            values.append(full[held.tokens, held.features])
        dense.append(full)
    return Codes(pairs, values), torch.stack(dense)


shapes = given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    tokens=st.integers(0, 7),
    features=st.integers(1, 6),
    seed=st.integers(0, 2**20),
)


@settings(max_examples=60, deadline=None)
@shapes
def test_statistics_and_views_are_those_of_the_dense_codes(
    kinds: list[str], tokens: int, features: int, seed: int
) -> None:
    codes, dense = made(kinds, tokens, features, seed)
    assert codes.shape == dense.shape
    assert (codes.n_layers, codes.n_tokens, codes.n_features) == tuple(dense.shape)
    assert codes.dtype == torch.float64
    assert torch.equal(codes.dense(), dense)
    assert torch.equal(codes.l0(), (dense != 0).sum(2))
    assert torch.equal(codes.fired(), (dense != 0).any(1))
    for layer, kind in enumerate(kinds):
        assert codes.is_dense(layer) == (kind == "dense")
        assert torch.equal(codes.slice(layer).dense(), dense[layer : layer + 1])
        pairs, values = codes.layer(layer)
        again = torch.zeros(tokens, features, dtype=torch.float64)
        again[pairs.tokens, pairs.features] = values
        assert torch.equal(again, dense[layer])
    if tokens:
        assert codes.values.shape == codes.indices.shape == (len(kinds), tokens, codes.values.shape[2])
        assert torch.equal(Codes.from_topk(codes.values, codes.indices, features).dense(), dense)
    assert torch.equal(Codes.from_dense(dense).dense(), dense)


@settings(max_examples=60, deadline=None)
@shapes
def test_tokens_are_selected_and_put_together(kinds: list[str], tokens: int, features: int, seed: int) -> None:
    codes, dense = made(kinds, tokens, features, seed)
    keep = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    chosen = codes.select_tokens(keep)
    assert torch.equal(chosen.dense(), dense[:, keep])
    assert torch.equal(chosen.l0(), (dense[:, keep] != 0).sum(2))
    other, more = made([KINDS[(seed + i) % 3] for i in range(len(kinds))], 4, features, seed + 1)
    both = Codes.cat(codes, other)
    assert torch.equal(both.dense(), torch.cat([dense, more], 1))
    assert torch.equal(both.l0(), (torch.cat([dense, more], 1) != 0).sum(2))


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(0, 7), features=st.integers(1, 6), seed=st.integers(0, 2**20))
def test_pairs_in_both_orders(tokens: int, features: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(tokens, features, generator=generator) < 0.5
    pairs = Pairs.from_mask(mask)
    listed = list(zip(pairs.tokens.tolist(), pairs.features.tolist()))
    assert listed == [(n, f) for n in range(tokens) for f in range(features) if mask[n, f]]
    assert pairs.counts.tolist() == mask.sum(1).tolist()
    order, offsets = pairs.by_feature
    assert [listed[i] for i in order.tolist()] == sorted(listed, key=lambda pair: (pair[1], pair[0]))
    assert offsets.tolist() == [0, *mask.sum(0).cumsum(0).tolist()]
    values = torch.randn(len(listed), generator=generator, dtype=torch.float64)
    expected = torch.zeros(features, tokens, dtype=torch.float64)
    expected[pairs.features, pairs.tokens] = values
    assert torch.equal(pairs.csr(values[order]).to_dense(), expected)
    chosen = torch.rand(len(listed), generator=generator) < 0.5
    kept = pairs.keep(chosen)
    assert list(zip(kept.tokens.tolist(), kept.features.tolist())) == [p for p, c in zip(listed, chosen) if c]
    assert kept.n_tokens == tokens
    both = Pairs.cat(pairs, kept)
    assert both.tokens.tolist() == [*pairs.tokens.tolist(), *(kept.tokens + tokens).tolist()]
    assert both.features.tolist() == [*pairs.features.tolist(), *kept.features.tolist()]


def test_the_padded_form_is_a_view_where_all_tokens_have_as_many() -> None:
    values, indices = torch.rand(2, 5, 3), torch.randint(0, 9, (2, 5, 3))
    codes = Codes.from_topk(values, indices, 9)
    assert torch.equal(codes.values, values)
    assert torch.equal(codes.indices, indices)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_to_what_is_held_and_stop_at_detach(kind: str) -> None:
    codes, _ = made([kind], 6, 5, 3)
    values = codes.layer_values[0].requires_grad_()
    held = None if kind == "dense" else codes.layer(0)[0]
    weights = torch.randn(1, 6, 5, dtype=torch.float64)
    (grad,) = torch.autograd.grad((Codes([held], [values]).dense() * weights).sum(), values)
    assert torch.equal(grad, weights[0] if held is None else weights[0, held.tokens, held.features])
    assert not Codes([held], [values]).detach().dense().requires_grad


def test_mistakes_are_named() -> None:
    pairs = Pairs.rectangular(torch.zeros(3, 2, dtype=torch.int64), 4)
    with pytest.raises(UserError, match="one Pairs and one values tensor a layer, got 1 and 2"):
        Codes([pairs], [torch.zeros(6), torch.zeros(6)])
    with pytest.raises(UserError, match="got 0 and 0"):
        Codes([], [])
    with pytest.raises(UserError, match=r"layer 1: \(5,\) values for \(6,\) pairs"):
        Codes([pairs, pairs], [torch.zeros(6), torch.zeros(5)])
    with pytest.raises(UserError, match=r"\(layers, tokens, n_features\), got shape \(3, 4\)"):
        Codes.from_dense(torch.zeros(3, 4))
    for values, indices in ((torch.zeros(1, 2, 2), torch.zeros(1, 2, 3)), (torch.zeros(2, 2), torch.zeros(2, 2))):
        with pytest.raises(UserError, match=r"\(layers, tokens, k\), got"):
            Codes.from_topk(values, indices.long(), 4)
    for index in (-1, 4):
        with pytest.raises(UserError, match=rf"indices must lie in 0\.\.3, got {min(index, 0)}\.\.{max(index, 0)}"):
            Codes.from_topk(torch.zeros(1, 1, 2), torch.tensor([[[0, index]]]), 4)


@pytest.mark.parametrize("kind", ["topk", "ragged", "dense"])
def test_the_first_tokens(kind: str) -> None:
    table = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0)).relu()
    if kind == "topk":
        best = table.topk(3, dim=2)
        codes = Codes.from_topk(best.values.requires_grad_(), best.indices, 9)
    elif kind == "ragged":
        codes = Codes.from_dense(table.requires_grad_())
    else:
        codes = Codes([None, None], list(table.requires_grad_()))
    for n in (0, 4, 6):
        first = codes.first(n)
        assert first.shape == (2, n, 9)
        assert torch.equal(first.dense(), codes.dense()[:, :n])
        assert torch.equal(first.l0(), codes.l0()[:, :n])
    weight = codes.layer_values[0]
    (gradient,) = torch.autograd.grad(codes.first(4).dense_layer(0).square().sum(), weight)
    (expected,) = torch.autograd.grad(codes.dense_layer(0)[:4].square().sum(), weight)
    assert torch.equal(gradient, expected)

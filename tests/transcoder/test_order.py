"""Places and orders against torch's own."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.transcoder.order import kth_largest, places_above, stable_order, true_places
from clt_lightning.transcoder.pairs import Pairs


@pytest.mark.parametrize("end", [1, 7, 2**15, 2**16, 2**16 + 1])
@pytest.mark.parametrize("n", [0, 1, 500])
def test_the_order_is_stable(n: int, end: int) -> None:
    keys = torch.randint(0, end, (n,), generator=torch.Generator().manual_seed(n))
    if n > 1:
        keys[0] = keys[-1] = end - 1
    order = stable_order(keys, end)
    assert order.dtype == torch.int64
    assert torch.equal(order, torch.argsort(keys, stable=True))


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (1, 1), (13, 29), (64, 256)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_places_pairs_and_entries_are_those_of_the_mask(shape: tuple[int, int], share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < share
    for one in (mask, mask.t().contiguous().t()):
        assert torch.equal(true_places(one), one.flatten().nonzero().view(-1))
        pairs = Pairs.from_mask(one)
        tokens, features = one.nonzero(as_tuple=True)
        assert torch.equal(pairs.tokens, tokens)
        assert torch.equal(pairs.features, features)
        assert torch.equal(pairs.counts, one.sum(1))
        for given in (table, table.t().contiguous().t()):
            assert torch.equal(pairs.entries(given), given[tokens, features])
        chosen = pairs.entries(table) > 0
        kept = pairs.keep(chosen)
        assert torch.equal(kept.tokens, tokens[chosen])
        assert torch.equal(kept.features, features[chosen])
        assert torch.equal(kept.offsets, torch.cat([torch.zeros(1).long(), (one & (table > 0)).sum(1).cumsum(0)]))


def test_entries_of_rectangular_pairs() -> None:
    table = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    best = torch.topk(table, 3, dim=1)
    assert torch.equal(Pairs.rectangular(best.indices, 12).entries(table), best.values.flatten())
    assert Pairs.rectangular(best.indices[:0], 12).entries(table[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kth_largest(dtype: torch.dtype) -> None:
    table = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    for given in (table, table.t(), table[::2]):
        for k in (1, 5, given.numel()):
            found = kth_largest(given, k)
            assert found.dtype == dtype
            assert found.shape == ()
            assert torch.equal(found, given.flatten().sort(descending=True).values[k - 1])
    table[3, 4] = float("nan")
    assert kth_largest(table, 1).isnan()
    assert torch.equal(kth_largest(table, 2), table.nan_to_num(-9.0).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cut", [0.7001, 0.0, -0.3001, torch.inf])
def test_places_above_a_cut_are_exact_whatever_its_type(dtype: torch.dtype, cut: float) -> None:
    table = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    table[0, 0], table[1, 1], table[2, 2] = cut, torch.inf, -0.0
    for kind in {dtype, torch.float32}:
        # a bf16 just above the cut, which the cut rounded to bf16 would not be below
        limit = torch.tensor(cut, dtype=kind)
        places = places_above(table, limit)
        assert torch.equal(places, (table.double() > limit.double()).flatten().nonzero().view(-1))
        pairs = Pairs.above(table, limit)
        assert torch.equal(pairs.tokens * 32 + pairs.features, places)

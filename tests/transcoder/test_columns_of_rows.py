"""Bag-sums over a few columns at a time against sums over whole rows."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.transcoder import sparse
from clt_lightning.transcoder.pairs import Pairs


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Often repeated features, one never used, one token without any."""
    mask = torch.rand(60, 24, generator=torch.Generator().manual_seed(0)) < 0.8
    mask[:, 5] = mask[7] = False
    return Pairs.from_mask(mask)


@pytest.mark.parametrize("add", [False, True])
def test_sums_over_columns_are_those_over_rows(pairs: Pairs, add: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_LARGE", 0)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(pairs.features.numel(), generator=generator)
    blocks = torch.randn(3, 24, 2 * sparse._COLUMNS, generator=generator).transpose(0, 1)  # as decoders lie in memory
    table, rows = blocks[:, 1], torch.randn(60, 2 * sparse._COLUMNS, generator=generator)
    dense = torch.zeros(60, 24).index_put((pairs.tokens, pairs.features), values).double()
    assert sparse._in_columns(table, pairs, sparse._OFTEN_WRITTEN)

    out = rows.clone() if add else torch.full_like(rows, torch.nan)
    sparse.put_bag(out, table, pairs, values, add)
    before = rows.double() if add else 0.0
    torch.testing.assert_close(out.double(), before + dense @ table.double(), rtol=1e-5, atol=1e-5)

    gradient = torch.full_like(blocks, 0.5 if add else torch.nan)  # whatever it holds
    order, _ = pairs.by_feature
    sparse.scatter_rows(pairs, values[order], rows, gradient[:, 1], add)
    torch.testing.assert_close(
        gradient[:, 1].double(), dense.T @ rows.double() + (0.5 if add else 0.0), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(sparse.scatter_rows(pairs, values[order], rows), sparse.scatter_rows(pairs, values[order], rows))


def test_rows_that_are_read_seldom_and_small_tables_are_summed_whole(pairs: Pairs) -> None:
    table = torch.zeros(24, 2 * sparse._COLUMNS)
    assert not sparse._in_columns(table, pairs, 1), "it is small"
    many = Pairs.rectangular(torch.arange(64).view(32, 2), 2**14)
    assert not sparse._in_columns(torch.zeros(2**14, sparse._COLUMNS), many, 1), "a pair for 256 features"

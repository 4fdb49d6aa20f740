"""L0 and dead features on codes whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.core.errors import UserError
from clt_lightning.metrics import L0, DeadFeatures, TokenLayout, select


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 30))
def test_equal_numpy_on_dense_codes(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.random((3, 30, 12)) * (rng.random((3, 30, 12)) < 0.05)
    l0, dead = L0(3), DeadFeatures(3, 12)
    for codes in torch.from_numpy(dense).split(batch, 1):
        l0.update((codes != 0).sum(-1))
        dead.update((codes != 0).any(1), codes.shape[1])
    np.testing.assert_allclose(l0.compute().numpy(), (dense != 0).sum(-1).mean(1), rtol=1e-12)
    np.testing.assert_allclose(dead.compute().numpy(), (dense == 0).all(1).mean(1), rtol=1e-12)


def test_token_sets_of_l0() -> None:
    counts = torch.tensor([[9, 1, 2, 7, 3, 4]])  # two images of [CLS] and two patches
    for token_set, expected in {"cls": 8.0, "patch": 2.5, "all": 26 / 6}.items():
        metric = L0(1)
        metric.update(select(counts, token_set, TokenLayout.plain(3)))
        assert float(metric.compute()) == pytest.approx(expected)


def test_no_tokens_is_nan() -> None:
    l0, dead = L0(2), DeadFeatures(2, 4)
    l0.update(torch.zeros(2, 0, dtype=torch.int64))
    dead.update(torch.zeros(2, 4, dtype=torch.bool), 0)
    assert l0.compute().isnan().all()
    assert dead.compute().isnan().all()


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(UserError, match="integer counts"):
        L0(2).update(torch.zeros(2, 5))
    with pytest.raises(UserError, match=r"active must have shape \(2, tokens..., \*\), got \(3, 5\)"):
        L0(2).update(torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(UserError, match=r"fired must be \(2, 4\), got \(2, 5\)"):
        DeadFeatures(2, 4).update(torch.zeros(2, 5, dtype=torch.bool), 1)

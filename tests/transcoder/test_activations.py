"""Which pre-activations become codes."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from clt_lightning.transcoder.activations import ACTIVATIONS, Activation, dense, from_config
from clt_lightning.transcoder.top import top_indices

A = TypeVar("A", bound=Activation)
pre_table = torch.tensor([[3.0, -4.0, 1.0, 2.0], [-1.0, -2.0, 0.5, -3.0]])


def built(activation: A, layers: int = 1, features: int = 4) -> A:
    activation.build(layers, features)
    return activation


def test_topk_lets_no_negative_through_when_fewer_than_k_are_positive() -> None:
    codes = dense(built(TopK(2)), pre_table, 0)
    torch.testing.assert_close(codes, torch.tensor([[3.0, 0, 0, 2.0], [0, 0, 0.5, 0]]))


def test_abs_topk_keeps_the_sign() -> None:
    codes = dense(built(AbsTopK(2)), pre_table, 0)
    torch.testing.assert_close(codes, torch.tensor([[3.0, -4.0, 0, 0], [0, -2.0, 0, -3.0]]))


def test_relu() -> None:
    torch.testing.assert_close(dense(built(ReLU()), pre_table, 0), pre_table.clamp_min(0))


def test_batch_topk_shares_the_budget() -> None:
    activation = built(BatchTopK(1))
    codes = dense(activation, pre_table, 0)
    torch.testing.assert_close(codes, torch.tensor([[3.0, 0, 0, 2.0], [0, 0, 0, 0]]))
    assert float(activation.threshold[0]) == 2.0


def test_batch_topk_evaluates_with_the_stored_threshold() -> None:
    """A token's codes must not depend on the batch it comes in."""
    activation = built(BatchTopK(1))
    for _ in range(3):
        dense(activation, pre_table, 0)
    activation.eval()
    stored = activation.threshold.clone()
    together = dense(activation, pre_table, 0)
    alone = torch.cat([dense(activation, row[None], 0) for row in pre_table])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(activation.threshold, stored)
    torch.testing.assert_close(alone, torch.where(pre_table > stored, pre_table, 0.0))


def test_batch_topk_stores_the_cut_that_leaves_a_margin() -> None:
    """L0 on batches like those of the training is within four per cent below k, and never depends on the batch."""
    generator = torch.Generator().manual_seed(5)
    activation = built(BatchTopK(6), features=96)
    for _ in range(40):
        dense(activation, torch.randn(400, 96, generator=generator), 0)
    activation.eval()
    l0 = (dense(activation, torch.randn(20000, 96, generator=generator), 0) > 0).sum(1).float().mean()
    assert 0.96 * 6 < float(l0) < 6
    kept = torch.arange(1.0, 301.0)
    fresh = built(BatchTopK(3), features=100)
    fresh.track(kept[torch.randperm(300, generator=generator)], 0)
    assert float(fresh.threshold[0]) == 7.0  # six of 300 lie below
    fresh.track(kept[:0], 0)
    assert int(fresh.updates[0]) == 1


def test_jump_relu_evaluates_with_its_learned_threshold() -> None:
    activation = built(JumpReLU(1.5, 0.1))
    for mode in (True, False):
        activation.train(mode)
        together = dense(activation, pre_table, 0)
        torch.testing.assert_close(together, torch.where(pre_table > 1.5, pre_table, 0.0))
        torch.testing.assert_close(together, torch.cat([dense(activation, row[None], 0) for row in pre_table]))


def test_jump_relu_gradient_of_the_threshold() -> None:
    """Inside the window: -threshold / bandwidth x incoming gradient; d log threshold = threshold x that."""
    activation = built(JumpReLU(1.0, 0.2), features=3)
    pre = torch.tensor([[0.95, 1.05, 1.5]], requires_grad=True)
    (dense(activation, pre, 0) * torch.tensor([2.0, 3.0, 5.0])).sum().backward()
    torch.testing.assert_close(pre.grad, torch.tensor([[0.0, 3.0, 5.0]]))
    torch.testing.assert_close(activation.log_threshold.grad, torch.tensor([[-2.0 / 0.2, -3.0 / 0.2, 0.0]]))


def test_the_kernel_of_the_threshold_is_half_a_bandwidth_wide_each_way() -> None:
    activation = built(JumpReLU(1.0, 0.2), features=6)
    pre = torch.tensor([[0.89, 0.91, 0.99, 1.01, 1.09, 1.11]], requires_grad=True)
    dense(activation, pre, 0).sum().backward()
    assert activation.log_threshold.grad is not None
    assert (activation.log_threshold.grad[0] != 0).tolist() == [False, True, True, True, True, False]


def test_a_fresh_threshold_lets_all_positive_ones_through() -> None:
    """An evaluation before the first step: as ReLU would."""
    activation = built(BatchTopK(1))
    activation.eval()
    torch.testing.assert_close(dense(activation, pre_table, 0), pre_table.clamp_min(0))


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(1, 12),
    features=st.integers(1, 40),
    k=st.integers(1, 8),
    seed=st.integers(0, 2**20),
    repeats=st.sampled_from([1, 40, 97]),  # batches large enough for a guess from a sample of the tokens
    every=st.sampled_from([1, 17]),  # large values at every token, or just where the sample looks
)
def test_batch_topk_cut_is_the_global_one(
    tokens: int, features: int, k: int, seed: int, repeats: int, every: int
) -> None:
    """Whichever way the winners are searched for, a flat top-k over the batch keeps the same."""
    tokens *= repeats
    pre = torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed))
    pre[0] += 3  # one greedy token
    pre[::every] += 1
    activation = built(BatchTopK(k), features=features)
    codes = dense(activation, pre, 0)
    flat = pre.clamp_min(0).flatten()
    expected = torch.zeros_like(flat)
    top = flat.topk(min(k * tokens, flat.numel()))
    expected[top.indices] = top.values
    torch.testing.assert_close(codes, expected.view_as(pre))


@pytest.mark.parametrize("tilt", [0.4, -0.7, 0.0])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_batch_topk_divides_its_budget_over_layers(tilt: float, layers: int) -> None:
    """k on average over the layers, from k (1 + tilt) down to k (1 - tilt); a layer alone keeps k."""
    k, tokens = 20, 300
    activation = built(BatchTopK(k, tilt=tilt), layers, features=200)
    pre = (
        torch.randn(tokens, 200, generator=torch.Generator().manual_seed(0)) + 3
    )  # all positive: nothing but the budget
    l0 = [float((dense(activation, pre, layer) > 0).sum()) / tokens for layer in range(layers)]
    assert sum(l0) / layers == pytest.approx(k, abs=1e-6)
    steps = [1 - 2 * layer / (layers - 1) for layer in range(layers)] if layers > 1 else [0.0]
    assert l0 == pytest.approx([k * (1 + tilt * step) for step in steps], abs=1e-6)
    assert from_config(activation.config()).config()["init_args"]["tilt"] == tilt


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_config_round_trip(name: str) -> None:
    activation = ACTIVATIONS[name]()
    again = from_config(activation.config())
    assert type(again) is type(activation)
    assert again.config() == activation.config()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="k must be at least 1, got 0"):
        TopK(0)
    with pytest.raises(UserError, match="tilt must lie between -1 and 1, got 1"):
        BatchTopK(4, tilt=1)
    with pytest.raises(UserError, match="threshold must be positive"):
        JumpReLU(threshold=0)
    with pytest.raises(UserError, match="unknown activation 'TopQ'"):
        from_config({"class_path": "TopQ"})


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 9),
    groups=st.integers(1, 40),
    k=st.integers(1, 9),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    levels=st.sampled_from([None, 2, 5]),
    shift=st.sampled_from([0.0, -3.0]),
    special=st.sampled_from([None, torch.nan, -torch.nan, torch.inf, -torch.inf]),
)
def test_top_indices_are_torchs(
    rows: int,
    groups: int,
    k: int,
    seed: int,
    dtype: torch.dtype,
    levels: int | None,
    shift: float,
    special: float | None,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(rows, 16 * groups, generator=generator)
    if levels is not None:  # many equal ones
        pre = (pre * levels).round() / levels
    pre = (pre + shift).to(dtype)
    if special is not None:
        there = torch.rand(pre.shape, generator=generator) < 0.02
        pre = torch.where(there, torch.tensor(abs(special), dtype=dtype).copysign(torch.tensor(special)), pre)
    k = min(k, 16 * groups)
    indices = top_indices(pre, k)
    assert (indices.sort(1).values.diff(dim=1) > 0).all(), "distinct"
    ours = pre.gather(1, indices).sort(1).values
    torch.testing.assert_close(ours, pre.topk(k, dim=1).values.sort(1).values, rtol=0, atol=0, equal_nan=True)

"""FVU, R2, MSE and cosine against plain NumPy on whole arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.metrics import FVU, MSE, R2, Cosine, ExactMetric, TokenLayout, select
from clt_lightning.metrics.reconstruction import merge_moments, token_moments


def numpy_fvu(y: Tensor, y_hat: Tensor) -> np.ndarray:
    """Straight from the definition, per layer, in float64."""
    a, b = y.double().numpy(), y_hat.double().numpy()
    a, b = a.reshape(len(a), -1, a.shape[-1]), b.reshape(len(b), -1, b.shape[-1])
    fvu: np.ndarray = ((a - b) ** 2).sum((1, 2)) / ((a - a.mean(1, keepdims=True)) ** 2).sum((1, 2))
    return fvu


def made(
    layers: int, tokens: int, d: int, *, mean: float = 3.0, noise: float = 0.3, seed: int = 0
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, layers)[:, None, None]
    y = scale * (torch.randn(layers, tokens, d, generator=generator) + mean)
    return y, y + scale * noise * torch.randn(layers, tokens, d, generator=generator)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-10), (torch.bfloat16, 1e-10), (torch.float64, 1e-10)]
)
def test_equals_numpy(dtype: torch.dtype, tolerance: float) -> None:
    y, y_hat = (t.to(dtype) for t in made(3, 700, 17))
    metrics = FVU(3, 17), R2(3, 17), MSE(3, 17), Cosine(3)
    for part in range(0, 700, 64):
        for metric in metrics:
            metric.update(y[:, part : part + 64], y_hat[:, part : part + 64])
    fvu, r2, mse, cosine = (metric.compute().numpy() for metric in metrics)
    a, b = y.double().numpy(), y_hat.double().numpy()
    np.testing.assert_allclose(fvu, numpy_fvu(y, y_hat), rtol=1e-10)
    np.testing.assert_allclose(r2, 1 - numpy_fvu(y, y_hat), rtol=1e-10)
    np.testing.assert_allclose(mse, ((a - b) ** 2).mean((1, 2)), rtol=1e-10)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(cosine, cosines.mean(1), rtol=1e-10)
    assert fvu.dtype == np.float64


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 59), max_size=6, unique=True),
    seed=st.integers(0, 10**6),
    mean=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_any_batch_size_and_order_gives_the_same_number(cuts: list[int], seed: int, mean: float) -> None:
    y, y_hat = made(2, 60, 5, mean=mean, seed=seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    edges = [0, *sorted(cuts), 60]
    for make in (lambda: FVU(2, 5), lambda: Cosine(2)):
        whole, parts = make(), make()
        whole.update(y, y_hat)
        for start, stop in itertools.pairwise(edges):
            parts.update(y[:, order[start:stop]], y_hat[:, order[start:stop]])
        torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-9, atol=0)


def test_a_mean_ten_thousand_times_the_spread_costs_no_digits() -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(1, 5000, 8, generator=generator, dtype=torch.float64) + 1e4
    y_hat = y + 0.1 * torch.randn(1, 5000, 8, generator=generator, dtype=torch.float64)
    metric = FVU(1, 8)
    for a, b in zip(y.split(333, 1), y_hat.split(333, 1)):
        metric.update(a, b)
    np.testing.assert_allclose(metric.compute().numpy(), numpy_fvu(y, y_hat), rtol=1e-10)


def test_mistake_1_the_mean_is_per_dimension() -> None:
    """One massive constant dimension: a scalar mean reads R2 = 0.93 and more where nothing is explained."""
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(1, 4000, 16, generator=generator)
    y[..., 3] += 60.0
    y_hat = y.mean(1, keepdim=True).expand_as(y)  # knows the mean and nothing else
    scalar = 1 - ((y - y_hat) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert scalar > 0.93
    r2 = R2(1, 16)
    r2.update(y, y_hat)
    assert abs(float(r2.compute())) < 1e-6


def test_mistake_3_cosine_runs_over_features_and_batches_weigh_by_their_tokens() -> None:
    """Rows that point the other way, columns that are constant: the batch axis would give other numbers."""
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])
    y_hat = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [-3.0, -4.0]]])
    metric = Cosine(1)
    metric.update(y, y_hat)
    torch.testing.assert_close(metric.compute(), torch.zeros(1, dtype=torch.float64))  # (1 + 0 - 1) / 3
    metric.reset()
    metric.update(y[:, :2], y_hat[:, :2])  # mean of batch means would be (0.5 - 1) / 2
    metric.update(y[:, 2:], y_hat[:, 2:])
    torch.testing.assert_close(metric.compute(), torch.zeros(1, dtype=torch.float64))


def test_the_mean_prediction_has_fvu_one_and_perfection_zero() -> None:
    y, _ = made(2, 300, 6)
    metric = FVU(2, 6)
    metric.update(y, y.double().mean(1, keepdim=True).expand_as(y))
    torch.testing.assert_close(metric.compute(), torch.ones(2, dtype=torch.float64))
    metric.reset()
    metric.update(y, y.clone())
    assert metric.compute().tolist() == [0.0, 0.0]


def test_a_layer_without_variance() -> None:
    y = torch.full((2, 50, 3), 0.1)
    y_hat = y.clone()
    y_hat[1, 7, 0] += 1e-3
    metric = FVU(2, 3)
    for a, b in zip(y.split(7, 1), y_hat.split(7, 1)):
        metric.update(a, b)
    assert metric.compute().tolist() == [0.0, float("inf")]


def test_no_tokens_is_nan_and_adds_nothing() -> None:
    metrics = FVU(2, 3), MSE(2, 3), Cosine(2)
    for metric in metrics:
        metric.update(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3))
        assert metric.compute().isnan().all()
    y, y_hat = made(2, 9, 3)
    empty = select(y, "cls", TokenLayout.plain(1))[:, :, :0]
    assert empty.shape == (2, 9, 0, 3)
    metrics[0].update(y, y_hat)
    before = metrics[0].compute()
    metrics[0].update(empty, select(y_hat, "cls", TokenLayout.plain(1))[:, :, :0])
    torch.testing.assert_close(metrics[0].compute(), before, rtol=0, atol=0)


def test_non_finite_reconstructions_are_not_hidden() -> None:
    y, y_hat = made(2, 9, 3)
    y_hat[1, 4, 2] = float("nan")
    metric = FVU(2, 3)
    metric.update(y, y_hat)
    values = metric.compute()
    assert values[0].isfinite()
    assert values[1].isnan()


def test_zero_vectors_in_the_cosine() -> None:
    y, y_hat = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    y_hat[0, 1] = 1.0
    metric = Cosine(1)
    metric.update(y, y_hat)
    assert float(metric.compute()) == 0.5
    metric.update(y_hat, y)  # one is zero, whichever
    assert float(metric.compute()) == 0.5
    metric.reset()
    metric.update(torch.full((1, 1, 3), 1e-42), torch.full((1, 1, 3), 1e30))
    assert float(metric.compute()) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [FVU(2, 3), MSE(2, 3), R2(2, 3), Cosine(2)], ids=lambda m: type(m).__name__)
def test_wrong_shapes_are_named(metric: FVU) -> None:
    with pytest.raises(
        UserError, match=rf"{type(metric).__name__}: y must have shape \(2, tokens..., .*got \(4, 5, 3\)"
    ):
        metric.update(torch.zeros(4, 5, 3), torch.zeros(4, 5, 3))
    with pytest.raises(UserError, match=r"y \(2, 5, 3\) and y_hat \(2, 1, 3\) must have one shape"):
        metric.update(torch.zeros(2, 5, 3), torch.zeros(2, 1, 3))


@pytest.mark.parametrize(("metric", "higher"), [(FVU, False), (R2, True), (MSE, False), (Cosine, True)])
def test_which_way_is_better(metric: type[ExactMetric], higher: bool) -> None:
    """As torchmetrics' trackers ask; none of them is a loss."""
    assert metric.higher_is_better is higher
    assert metric.is_differentiable is False


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_merged_moments_are_those_of_the_union(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 4, generator=generator, dtype=torch.float64) + 5 for n in sizes]
    nothing = torch.zeros(6, dtype=torch.float64)
    stacked = torch.stack([nothing, *map(token_moments, parts), nothing])
    union = torch.cat(parts)
    expected = torch.cat([torch.tensor([len(union), union.sub(union.mean(0)).square().sum()]), union.mean(0)])
    torch.testing.assert_close(merge_moments(stacked), expected, rtol=1e-12, atol=1e-12)

"""The features' share: known variances, large means, any batching."""

from __future__ import annotations

import math

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.metrics import FeaturesShare


def test_known_variances() -> None:
    generator = torch.Generator().manual_seed(0)
    f, s = torch.randn(2, 2, 5000, 8, generator=generator, dtype=torch.float64)
    f, s = 3 * f, torch.stack([s[0], -0.5 * f[1]])  # independent in layer 0, against each other in layer 1
    metric = FeaturesShare(2, 8)
    metric.update(f, f + s)
    y = f + s
    centred = [(t - t.mean(1, keepdim=True)) for t in (f, y)]
    expected = (centred[0] * centred[1]).sum((1, 2)) / centred[1].square().sum((1, 2))
    torch.testing.assert_close(metric.compute(), expected)
    assert metric.compute()[0] == pytest.approx(0.9, abs=0.02)
    assert metric.compute()[1] == pytest.approx(1.2)  # y = 3 f - f / 2: the skip takes a part of it away again


def test_a_large_mean_and_small_batches_cost_no_digits() -> None:
    generator = torch.Generator().manual_seed(1)
    f, s = torch.randn(2, 1, 60, 4, generator=generator, dtype=torch.float64)
    whole, parts = FeaturesShare(1, 4), FeaturesShare(1, 4)
    whole.update(f, f + s)
    for piece in (slice(0, 7), slice(7, 8), slice(8, 60)):
        parts.update(1e6 + f[:, piece], 1e6 + (f + s)[:, piece])
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-6, atol=0)


def test_without_a_skip_it_is_one_and_constant_layers_have_none() -> None:
    f = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(2))
    f[1] = 5.0
    metric = FeaturesShare(2, 4)
    metric.update(f, f + 1.0)
    assert metric.compute()[0] == pytest.approx(1.0)
    assert math.isnan(metric.compute()[1])


def test_shapes_are_checked() -> None:
    with pytest.raises(UserError, match="y_hat"):
        FeaturesShare(2, 4).update(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5))
    with pytest.raises(UserError, match="features"):
        FeaturesShare(2, 4).update(torch.zeros(2, 2, 4), torch.zeros(2, 3, 4))

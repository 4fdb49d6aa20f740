"""In a planted world: do seeds agree as far as they found the truth, and are the nulls where they must be?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.planted import SETTINGS, Found, measure, true_transcoder
from clt_lightning.analysis.matching import match_features
from clt_lightning.analysis.stability import code_correlations, compare, mean_correlation
from clt_lightning.core.errors import UserError
from clt_lightning.data import Planted


@pytest.fixture(scope="module")
def found() -> list[Found]:
    shorter = [dataclasses.replace(setting, steps=setting.steps // 2) for setting in SETTINGS]
    return [measure(setting, n_layers=2, d_model=16, n_features=20, tokens=800) for setting in shorter]


def test_truth_and_seeds_move_together(found: list[Found]) -> None:
    truth, directions, seeds, decoders = (
        [getattr(f, name) for f in found] for name in ("truth", "directions", "seeds", "decoders")
    )
    assert max(directions) - min(directions) > 0.15  # they differ enough to be ordered
    assert stats.spearmanr(directions, decoders).statistic >= 0.9
    assert stats.spearmanr(truth, seeds).statistic >= 0.9
    assert stats.pearsonr(directions, decoders).statistic > 0.9


def test_training_is_above_the_nulls(found: list[Found]) -> None:
    assert all(f.seeds > f.null_seeds + 0.05 for f in found)
    assert found[0].truth > found[0].null_truth + 0.15


def expected_largest(m: int, d: int) -> float:
    """Mean of the largest of m cosines of random directions in d dimensions."""
    grid = np.linspace(-1, 1, 20_001)
    half = stats.beta.cdf(grid**2, 0.5, (d - 1) / 2) / 2
    below = np.where(grid < 0, 0.5 - half, 0.5 + half) ** m
    return float(1 - np.trapezoid(below, grid))


@pytest.mark.parametrize(("layers", "d", "features"), [(1, 24, 300), (3, 40, 150)])
def test_the_untrained_null_is_at_its_expectation(layers: int, d: int, features: int) -> None:
    a, b = (true_transcoder(Planted(layers, d, features, support=1.0, seed=seed)) for seed in (0, 1))
    for layer in match_features(a, b):
        width = d * (layers - layer.layer)
        for kind, size in (("decoder", width), ("encoder", d)):
            expected = expected_largest(features, size)
            assert layer.null["untrained"][kind] == pytest.approx(expected, abs=0.015)
            assert layer.mmcs[kind] == pytest.approx(expected, abs=0.015)  # two worlds have nothing in common
            assert layer.mmcs_b[kind] == pytest.approx(expected, abs=0.015)
            assert layer.mcc[kind] == pytest.approx(layer.null["mcc"]["untrained"][kind], abs=0.02)
            assert layer.mcc[kind] < expected


def test_the_same_world_is_found_whatever_the_order() -> None:
    world = Planted(3, 32, 30)
    (pair,) = compare([true_transcoder(world), true_transcoder(world)]).pairs
    assert pair.numbers() == pytest.approx(dict.fromkeys(pair.numbers(), 1.0), abs=1e-5)
    (pair,) = compare([true_transcoder(world), true_transcoder(Planted(3, 32, 30, seed=9))]).pairs
    assert pair.numbers()["kept"] == 0


def test_codes_are_matched_with_the_truth() -> None:
    world = Planted(2, 8, 6, rate=0.3)
    truth = world.sample(400, seed=1).codes
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert mean_correlation(truth[:, :, order] * 3 + 1, truth) == pytest.approx(1)
    assert mean_correlation(-truth, truth) == pytest.approx(1)  # absolute correlations
    half = truth[:, :, order[:3]]
    assert mean_correlation(half, truth) == pytest.approx(0.5)  # what was not found is missing
    more = torch.cat([truth, torch.zeros(2, 400, 5), torch.rand(2, 400, 4)], 2)
    assert mean_correlation(more, truth) == pytest.approx(1)
    assert mean_correlation(truth[0], truth[0]) == pytest.approx(1)
    strangers = world.sample(400, seed=2).codes
    assert mean_correlation(strangers, truth) < 0.2
    expected = np.corrcoef(truth[0].numpy().T, strangers[0].numpy().T)[:6, 6:]
    np.testing.assert_allclose(code_correlations(truth[0], strangers[0]).numpy(), expected, atol=1e-6)
    for wrong in (truth[:1], truth[:, :5], truth[0]):
        with pytest.raises(UserError, match="must agree in layers and tokens"):
            mean_correlation(wrong, truth)

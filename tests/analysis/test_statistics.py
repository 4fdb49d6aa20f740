"""Intervals, average precision, retrieval and the population check, each by a second way of computing it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from clt_lightning.analysis.arms import Arm
from clt_lightning.analysis.crossmodal import retrieval_result
from clt_lightning.analysis.intervals import Interval, mean_intervals, recall_interval, share_interval
from clt_lightning.analysis.multilabel import average_precision, multilabel_result
from clt_lightning.analysis.population import (
    PopulationCheck,
    TrainSums,
    mean_check,
    outlier_check,
    resample_counts,
)
from clt_lightning.analysis.statistics import Measured, zero_shot
from clt_lightning.data import Planted

ARM = Arm("original")


def test_two_ways_to_the_interval_of_an_accuracy() -> None:
    right = np.zeros(400)
    right[:300] = 1
    (drawn,) = mean_intervals(right[:, None], 4000, seed=0)
    counted = share_interval(300, 400, 4000, seed=1)
    normal = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    for found in (drawn, counted):
        assert found.value == 0.75
        assert found.low == pytest.approx(0.75 - normal, abs=0.006)
        assert found.high == pytest.approx(0.75 + normal, abs=0.006)


def test_intervals_cover() -> None:
    """About 95 % of the intervals of samples hold the truth."""
    rng = np.random.default_rng(0)
    samples = rng.exponential(2.0, (200, 100))
    inside = [i.low <= 2 <= i.high for i in mean_intervals(samples, 500, seed=0)]
    assert 0.88 <= np.mean(inside) <= 0.99


def test_recall_counts_every_class_alike() -> None:
    found = recall_interval(np.array([90, 1, 0]), np.array([100, 2, 0]), 2000, seed=0)
    assert found.value == pytest.approx((0.9 + 0.5) / 2)
    assert found.low < 0.55  # the class of two images makes it uncertain
    assert found.high > 0.85


def test_one_image_is_certain_of_itself() -> None:
    """All its resamples are that image."""
    assert mean_intervals(np.array([[0.25, 1.0]]), 20, 0) == [Interval(0.25, 0.25, 0.25), Interval(1.0, 1.0, 1.0)]
    assert share_interval(1, 1, 20, 0) == Interval(1.0, 1.0, 1.0)
    assert recall_interval(np.array([0, 1]), np.array([0, 1]), 20, 0) == Interval(1.0, 1.0, 1.0)
    assert mean_intervals(np.empty((0, 2)), 20, 0)[1].to_json() == {"value": None, "low": None, "high": None}


def test_nothing_to_count_is_null() -> None:
    assert share_interval(0, 0, 10, 0).to_json() == {"value": None, "low": None, "high": None}
    assert recall_interval(np.zeros(3), np.zeros(3), 10, 0).to_json()["value"] is None


def slow_average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Sum over thresholds of (recall gained) x precision, a threshold at a time."""
    total, last = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        precision, recall = present[chosen].mean(), present[chosen].sum() / present.sum()
        total, last = total + (recall - last) * precision, recall
    return total


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_average_precision_with_ties_and_weights(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    scores = data.draw(arrays(np.int64, (n, 2), elements=st.integers(0, 4))).astype(float)
    present = data.draw(arrays(np.bool_, (n, 2)))
    weights = data.draw(arrays(np.int64, (1, n), elements=st.integers(0, 3)))
    found = average_precision(scores, present, weights)[0]
    repeated, again = np.repeat(scores, weights[0], 0), np.repeat(present, weights[0], 0)
    for c in range(2):
        if again[:, c].sum() == 0:
            assert np.isnan(found[c])
        else:
            assert found[c] == pytest.approx(slow_average_precision(repeated[:, c], again[:, c]))


def test_multilabel() -> None:
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.1], [0.3, 0.4, 0.2], [0.5, 0.1, 0.2]])
    present = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = multilabel_result(ARM, scores, present, 100, 0)
    assert found.n == 3
    assert found.top1_hit.value == pytest.approx(2 / 3)
    assert found.average_precision.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1, 1])
    assert found.map.value == pytest.approx((5 / 6 + 2) / 3)
    assert found.map.low <= found.map.value <= found.map.high


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_retrieval_by_full_sorting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(9), rng.integers(0, 9, 14)])
    images, texts = rng.normal(size=(9, 4)), rng.normal(size=(23, 4))
    texts += images[owner]
    scores = images @ texts.T
    found = retrieval_result(ARM, images, texts, owner, 50, 0).recall
    for k in (1, 5):
        of_images = [i in owner[np.argsort(-scores[i])[:k]] for i in range(9)]
        of_texts = [owner[t] in np.argsort(-scores[:, t])[:k] for t in range(23)]
        assert found[f"image_to_text_r{k}"].value == pytest.approx(np.mean(of_images))
        assert found[f"text_to_image_r{k}"].value == pytest.approx(np.mean(of_texts))


def test_fvu_of_a_resample_is_the_fvu_of_its_tokens() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(12, 2, 5, 3)) * 4 + 7  # images, layers, tokens, d
    y_hat = y + rng.normal(size=y.shape)
    origin = np.array([7.0, 6.0])[None, :, None, None]
    error = ((y - y_hat) ** 2).sum((2, 3))
    sums = TrainSums(error, ((y - origin) ** 2).sum((2, 3)), (y - origin).sum(2), 5)
    counts = resample_counts(12, 20, 7, seed=0)
    assert (counts.sum(1) == 20).all()
    for row, found in zip(counts, sums.fvu(counts)):
        pick = np.repeat(np.arange(12), row.astype(int))
        fvu = []
        for layer in range(2):
            true, rebuilt = y[pick, layer].reshape(-1, 3), y_hat[pick, layer].reshape(-1, 3)
            fvu.append(((true - rebuilt) ** 2).sum() / ((true - true.mean(0)) ** 2).sum())
        assert found == pytest.approx(np.mean(fvu))


def p_values(shift: float, m: int, n: int, repeats: int = 300) -> np.ndarray:
    rng = np.random.default_rng(1)
    out = []
    for seed in range(repeats):
        train, held_out = rng.normal(size=m), rng.normal(size=n) + shift
        counts = resample_counts(m, n, 99, seed)
        out.append(mean_check("kl", "all", (0, 2), held_out, train, counts).p_value)
    return np.array(out)


@pytest.mark.parametrize(("m", "n"), [(100, 100), (60, 180), (200, 50)])
def test_the_population_check_is_calibrated(m: int, n: int) -> None:
    """Held out from the same population: small p-values are as rare as they say, whatever the sizes."""
    found = p_values(0.0, m, n)
    assert np.mean(found <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(found <= 0.5) == pytest.approx(0.5, abs=0.1)


def test_the_population_check_finds_worse_data() -> None:
    assert np.mean(p_values(0.8, 100, 100, 50) <= 0.05) > 0.9
    assert np.mean(p_values(-0.8, 100, 100, 50) >= 0.95) > 0.9  # better data is no alarm


@pytest.mark.parametrize("name", ["fvu", "l0", "outliers"])
def test_p_values_are_uniform_where_nothing_is_wrong(name: str) -> None:
    """One distribution split in two, 200 times: Kolmogorov and Smirnov find nothing."""
    planted = PlantedImages()
    found = [planted.check(name, seed) for seed in range(200)]
    if name == "outliers":  # few values are possible: it may say less than it could, never more
        assert all(np.mean([c.p_value <= level for c in found]) <= level + 0.06 for level in (0.05, 0.1, 0.2))
        return
    assert stats.kstest([c.p_value for c in found], "uniform").pvalue > 0.01
    assert stats.kstest([c.p_two_sided for c in found], "uniform").pvalue > 0.01


def test_another_data_set_fails_the_check() -> None:
    """Features that are rare in training are frequent there: the transcoder knows them less well."""
    planted = PlantedImages()
    for name in ("fvu", "l0", "outliers"):
        alarms = [planted.check(name, seed, shifted=True).p_two_sided <= 0.05 for seed in range(40)]
        assert np.mean(alarms) > 0.9, name


class PlantedImages:
    """Images of 8 tokens of a planted world, and a transcoder that does not know the world's rare features."""

    def __init__(self) -> None:
        self.world = Planted(2, 16, 20, rate=(0.02, 0.3), noise=0.1)

    def images(self, n: int, seed: int, shifted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        world = self.world
        rates = world.rates.clamp(min=0.2) if shifted else world.rates
        batch = world.sample(n * 8, seed=seed, rates=rates)
        y_hat = world.decode(batch.codes * (world.rates > 0.05)[:, None])
        y = batch.y.unflatten(1, (n, 8)).transpose(0, 1).double().numpy()  # images, layers, tokens, d
        error = (batch.y - y_hat).double().square().unflatten(1, (n, 8)).sum((2, 3)).T.numpy()
        return y, error, (batch.codes > 0).double().sum(2).unflatten(1, (n, 8)).mean((0, 2)).numpy()

    def check(self, name: str, seed: int, m: int = 60, n: int = 40, shifted: bool = False) -> PopulationCheck:
        """Of m training images and n others."""
        y, error, l0 = self.images(m, 2 * seed, False)
        y_new, error_new, l0_new = self.images(n, 2 * seed + 1, shifted)
        counts = resample_counts(m, n, 199, seed)
        if name == "l0":
            return mean_check("l0", "all", (None, None), l0_new, l0, counts)
        sums = [TrainSums(e, (v**2).sum((2, 3)), v.sum(2), 8) for v, e in ((y, error), (y_new, error_new))]
        if name == "outliers":
            return outlier_check(sums[0].image_fvu(error_new), sums[0].image_fvu(error), counts)
        held_out, own = (float(part.fvu(np.ones((1, len(part.error))))[0]) for part in reversed(sums))
        return PopulationCheck("fvu", "all", None, None, held_out, own, np.sort(sums[0].fvu(counts)))


def test_images_errors_are_shares_of_the_training_variance() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(12, 2, 5, 3)) * 4 + 7
    error = ((y - 7) ** 2).sum((2, 3)) / 3
    sums = TrainSums(error, ((y - 6) ** 2).sum((2, 3)), (y - 6).sum(2), 5)
    variance = y.transpose(1, 0, 2, 3).reshape(2, 60, 3).var(1).sum(1)
    np.testing.assert_allclose(sums.image_fvu(error), (error / 5 / variance).mean(1))


def test_two_sided() -> None:
    resampled = np.arange(1.0, 100.0)
    for value, expected in ((0.0, 2 / 100), (100.0, 2 / 100), (50.0, 1.0), (5.0, 12 / 100), (np.nan, np.nan)):
        check = PopulationCheck("l0", "all", None, None, value, 50.0, resampled)
        np.testing.assert_allclose(check.p_two_sided, expected)


def test_resamples_equal_to_the_held_out_value_count_against_it() -> None:
    check = PopulationCheck("kl", "all", 0, 2, 2.0, 2.0, np.array([1.0, 2.0, 2.0, 3.0]))
    assert check.p_value == pytest.approx((1 + 3) / (1 + 4))
    assert PopulationCheck("kl", "all", 0, 2, 3.5, 2.0, check.resampled).p_value == pytest.approx(1 / 5)
    for held_out, resampled in ((np.nan, [1.0]), (1.0, [1.0, np.nan])):
        assert np.isnan(PopulationCheck("kl", "all", 0, 2, held_out, 2.0, np.array(resampled)).p_value)


def test_resamples_without_a_known_image_have_no_mean() -> None:
    train, counts = np.array([1.0, np.nan, 3.0]), np.array([[1.0, 1.0, 1.0], [0.0, 3.0, 0.0], [2.0, 1.0, 0.0]])
    check = mean_check("accuracy_drop", "all", (0, 2), np.array([np.nan, 0.5]), train, counts)
    assert (check.held_out, check.train) == (0.5, 2.0)
    assert np.array_equal(check.resampled, [1.0, 2.0, np.nan], equal_nan=True)
    nothing = mean_check("accuracy_drop", "all", (0, 2), np.array([np.nan]), train, counts)
    assert np.isnan(nothing.held_out)


def test_population_json() -> None:
    check = PopulationCheck("fvu", "all", None, None, 0.5, 0.4, np.linspace(0, 1, 1000))
    found = check.to_json()
    assert found["p_value"] == pytest.approx(501 / 1001)
    assert len(found["resampled"]) == 200
    assert (found["resampled"][0], found["resampled"][-1]) == (0.0, 1.0)
    assert found["quantiles"]["0.5"] == pytest.approx(0.5)


def test_zero_shot_from_ranks() -> None:
    """Seven classes, of which one has no image; images without a label count for the divergence alone."""
    labels = np.array([0, 0, 1, 2, 3, 4, 5, -1])
    ranks = np.array([[0, 1, 0, 4, 5, 6, 0, -1], [0, 0, 1, 5, 4, 0, 3, -1]])
    kl = np.arange(16, dtype=float).reshape(2, 8)
    columns = {"rank": ranks.T, "kl": kl.T, "labels": labels}
    keys = np.array([f"{i}" for i in range(8)])
    arms = [ARM, Arm("replaced", 0, 1, "all")]
    original, changed = zero_shot(
        Measured(arms, [f"c{i}" for i in range(7)], keys, columns, (np.array([]), {})), draws=50, seed=0
    )
    assert [r.arm for r in (original, changed)] == arms
    assert (original.n, changed.n) == (7, 7)
    assert (original.top1.value, changed.top1.value) == (pytest.approx(3 / 7), pytest.approx(3 / 7))  # type: ignore[comparison-overlap]
    assert (original.top5.value, changed.top5.value) == (pytest.approx(5 / 7), pytest.approx(6 / 7))  # type: ignore[comparison-overlap]
    assert (original.drop.value, changed.drop.value) == (0, pytest.approx(0))  # type: ignore[comparison-overlap]
    assert (original.kl.value, changed.kl.value) == (pytest.approx(3.5), pytest.approx(11.5))  # type: ignore[comparison-overlap]
    assert np.allclose(original.recall, [0.5, 1, 0, 0, 0, 1, np.nan], equal_nan=True)
    assert np.allclose(changed.recall, [1, 0, 0, 0, 1, 0, np.nan], equal_nan=True)
    assert original.per_class_recall.value == pytest.approx(2.5 / 6)
    # the images are drawn alike for both: where one is right and the other wrong, the drop is uncertain
    assert original.drop.low == original.drop.high == 0
    assert changed.drop.low < 0 < changed.drop.high


def test_zero_shot_of_images_without_labels() -> None:
    columns = {"rank": np.full((4, 1), -1), "kl": np.ones((4, 1)), "labels": np.full(4, -1)}
    (found,) = zero_shot(Measured([ARM], ["a", "b"], np.arange(4), columns, (np.array([]), {})), draws=20, seed=0)
    assert found.n == 0
    assert np.isnan([found.top1.value, found.top5.value, found.per_class_recall.value, found.drop.value]).all()
    assert np.isnan(found.recall).all()
    assert found.kl.value == 1
    assert zero_shot(Measured([ARM], [], np.arange(4), {"labels": np.full(4, -1)}, (np.array([]), {})), 20, 0) == []

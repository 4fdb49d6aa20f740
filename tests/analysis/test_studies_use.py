"""Shared or specific: intervals, tests, entropy, and the planted kinds that they must find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from clt_lightning.analysis.studies import (
    KINDS,
    StudyCounter,
    benjamini_hochberg,
    explained_use,
    same_rate,
    use_entropy,
    wilson,
)
from clt_lightning.core.errors import UserError
from clt_lightning.data import Planted
from clt_lightning.transcoder import Codes


def test_wilsons_interval_is_scipys() -> None:
    counts, totals = np.array([0, 3, 50, 100]), np.array([100, 100, 100, 100])
    low, high = wilson(counts, totals)
    for i, count in enumerate(counts.tolist()):
        want = stats.binomtest(count, 100).proportion_ci(method="wilson")
        assert (low[i], high[i]) == pytest.approx((want.low, want.high), abs=1e-12)
    assert np.isnan(wilson(np.array([0]), np.array([0]))[0]).all()


def test_p_values_are_those_of_the_exact_and_the_chi_square_test() -> None:
    two = same_rate(np.array([[3, 9], [0, 0], [20, 30]]), np.array([20, 30]))
    assert two[0] == pytest.approx(stats.fisher_exact([[3, 17], [9, 21]])[1])
    assert np.isnan(two[1:]).all()
    three = same_rate(np.array([[3, 9, 12]]), np.array([20, 30, 40]))
    want = stats.chi2_contingency([[3, 9, 12], [17, 21, 28]], correction=False)[1]
    assert three[0] == pytest.approx(want)


def test_q_values_leave_out_what_was_not_tested() -> None:
    q = benjamini_hochberg(np.array([[0.01, np.nan], [0.02, 0.5]]))
    np.testing.assert_allclose(q, [[0.03, np.nan], [0.03, 0.5]])


def test_entropy_of_use() -> None:
    rates = np.array([[0.3, 0.3, 0.3], [0.2, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.0]])
    np.testing.assert_allclose(use_entropy(rates), [1, 0, np.nan, np.log(2) / np.log(3)], atol=1e-12)


def test_explained_use_is_the_information_of_the_set_over_the_entropy_of_use() -> None:
    """Of equal sets: that of the contingency table; it treats being on and being off alike, and sets alike."""
    counts, totals = np.array([[980, 600], [30, 30], [1000, 0], [20, 400]]), np.array([1000, 1000])
    found = explained_use(counts, totals)
    for i, on in enumerate(counts):
        table = np.stack([on, totals - on]) / totals.sum()
        alone = table.sum(0) * table.sum(1, keepdims=True)
        information = np.where(table > 0, table * np.log(np.where(table > 0, table, 1) / alone), 0).sum()
        used = table.sum(1)
        want = (information - 1 / (2 * totals.sum())) / stats.entropy(used)
        assert found[i] == pytest.approx(max(want, 0), abs=1e-12)
    np.testing.assert_allclose(found, explained_use(totals - counts, totals), atol=1e-12)
    assert use_entropy(counts[0] / totals) > 0.95  # the rates alone hide the first
    assert found[0] > 0.2
    assert found[2] == pytest.approx(1, abs=1e-3)
    larger = explained_use(counts * [1, 3], totals * [1, 3])
    np.testing.assert_allclose(larger, found, atol=1e-3)
    assert np.isnan(explained_use(np.array([[0, 0], [1000, 1000]]), totals)).all()
    assert np.isnan(explained_use(np.array([3, 0]), np.array([5, 0])))


def test_explained_use_is_small_where_nothing_is_to_be_explained() -> None:
    """Chance gives rare features an entropy near 0, as if they were one set's own, and explains hardly anything."""
    rng = np.random.default_rng(0)
    totals = np.array([500, 500, 500])
    rare, common = (rng.binomial(totals, rate, (4000, 3)) for rate in (0.001, 0.3))
    once = rare[rare.sum(1) == 1]
    assert use_entropy(once / totals).max() < 1e-6
    assert explained_use(once, totals).max() < 0.1
    # what is left of a chi-square of 2 degrees of freedom, less its mean, where negative values are set to 0
    expected = 2 * np.exp(-1) / (2 * totals.sum()) / stats.entropy([0.3, 0.7])
    assert explained_use(common, totals).mean() == pytest.approx(expected, rel=0.1)


def _use(seed: int, sets: int = 2, images: int = 400, each: int = 4):  # type: ignore[no-untyped-def]
    """True codes of a planted world whose features are of all sets, or of one; and which."""
    world = Planted(2, 8, 20, seed=seed, rate=0.05)
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(-1, sets, (2, 20), generator=generator)
    counter = StudyCounter([f"s{i}" for i in range(sets)], 2, 20, 8)
    for study in range(sets):
        rates = torch.where((owner < 0) | (owner == study), world.rates, 0.0)
        batch = world.sample(images * each, seed=study, rates=rates)
        zeros = torch.zeros_like(batch.y)
        counter.update(torch.full((images,), study), Codes.from_dense(batch.codes), batch.y, zeros)
    return counter.result(), owner.numpy(), world


def test_planted_kinds_come_out() -> None:
    for sets in (2, 3):
        use, owner, _ = _use(3, sets)
        kinds = use.kinds()
        assert (kinds[owner >= 0] == KINDS.index("specific")).all()
        assert (kinds[owner < 0] == KINDS.index("shared")).mean() > 0.85
        assert use.entropy[owner >= 0].max() < use.entropy[owner < 0].min()
        assert (use.rates.argmax(-1) == owner)[owner >= 0].all()
        low, high = use.intervals()
        assert ((low <= use.rates) & (use.rates <= high)).all()


def test_strength_is_what_weak_stray_codes_do_not_change() -> None:
    """Known codes: feature 0 is the first set's, with a tenth of its strength in the second; feature 1 is of both."""
    counter = StudyCounter(["a", "b"], 1, 2, 3)
    for study, (first, images) in enumerate(((1.0, 6), (0.1, 3))):
        codes = torch.zeros(1, 2 * images, 2)  # two tokens per image
        codes[0, ::2, 0], codes[0, 1::2, 1] = first, 2.0
        y = torch.zeros(1, 2 * images, 3)
        for part in torch.arange(images).split(2):  # batch by batch
            tokens = (2 * part[:, None] + torch.arange(2)).flatten()
            counter.update(
                torch.full((len(part),), study), Codes.from_dense(codes[:, tokens]), y[:, tokens], y[:, tokens]
            )
    use = counter.result()
    np.testing.assert_allclose(use.power, [[[0.5, 0.005], [2.0, 2.0]]], rtol=1e-6)
    np.testing.assert_allclose(use.entropy, [[1.0, 1.0]])
    share = 0.01 / 1.01
    expected = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    np.testing.assert_allclose(use.strength_entropy, [[expected, 1.0]], rtol=1e-6)


def test_false_discoveries_are_few_where_all_sets_are_alike() -> None:
    counter = StudyCounter(["a", "b"], 1, 400, 2)
    generator = torch.Generator().manual_seed(0)
    codes = (torch.rand(1, 600, 400, generator=generator) < 0.1).float()
    y = torch.randn(1, 600, 2, generator=generator)
    counter.update(torch.arange(600) % 2, Codes.from_dense(codes), y, y)
    use = counter.result()
    assert (use.kinds() == KINDS.index("shared")).all()
    np.testing.assert_allclose(use.fvu, 0.0)
    assert use.images.tolist() == [300, 300]


def test_fvu_and_l0_are_each_sets_own() -> None:
    use, _, _ = _use(5)
    np.testing.assert_allclose(use.l0, use.l0.clip(0.2, 3))
    assert (use.fvu >= 1).all()  # nothing was rebuilt, and the mean is not known either
    counter = StudyCounter(["a", "b"], 1, 3, 2)
    codes = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]])
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    counter.update(torch.tensor([0, 1]), Codes.from_dense(codes), y, y)
    found = counter.result()
    assert found.l0.tolist() == [[2.0], [1.0]]
    assert found.counts[0].tolist() == [[1, 0], [1, 0], [0, 1]]
    assert found.table()["sets"][0]["name"] == "a"


def test_bad_batches_are_named() -> None:
    with pytest.raises(UserError, match="two or more"):
        StudyCounter(["a"], 1, 3, 2)
    counter = StudyCounter(["a", "b"], 1, 3, 2)
    codes, y = Codes.from_dense(torch.ones(1, 3, 3)), torch.zeros(1, 3, 2)
    with pytest.raises(UserError, match="whole images"):
        counter.update(torch.tensor([0, 1]), codes, y, y)
    with pytest.raises(UserError, match=r"must be 0\.\.1"):
        counter.update(torch.tensor([0, 1, 2]), codes, y, y)

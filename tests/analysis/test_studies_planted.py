"""The benchmark of entropy of use: its labels and its score, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.studies import Kinds, auc, information, report
from clt_lightning.analysis.studies import StudyCounter
from clt_lightning.transcoder import Codes


def test_information_is_that_of_the_table() -> None:
    factor = np.arange(4000) % 4
    rng = np.random.default_rng(0)
    fires = np.stack([factor == 2, factor < 2, rng.random(4000) < 0.3, np.zeros(4000, bool)], 1)
    nats, p = information(fires, factor, 4)
    bias = 3 / (2 * 4000)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(nats[[0, 1, 3]] + bias, [entropy, np.log(2), 0.0], atol=1e-12)
    assert abs(nats[2]) < 2e-3
    assert p[2] > 1e-3
    assert p[0] < 1e-9
    assert p[3] == pytest.approx(1)


def test_auc_counts_pairs_and_halves_ties() -> None:
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 5, 40), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(scores, np.zeros(40, bool)))


def test_the_report_scores_planted_kinds() -> None:
    """Features 0 to 4 fire with one set, 5 to 9 with a class that both sets have; 10 at random and 11 never."""
    counter = StudyCounter(["a", "b"], 1, 12, 2)
    rng = np.random.default_rng(2)
    for study in range(2):
        of_class = rng.random((500, 5)) < 0.2
        own = (rng.random((500, 5)) < 0.3) & (rng.random((500, 5)) < (0.95 if study == 0 else 0.15))
        rest = np.stack([rng.random(500) < 0.1, np.zeros(500, bool)], 1)
        codes = torch.from_numpy(np.concatenate([own, of_class, rest], 1)).float()[None]
        y = torch.randn(1, 500, 2, generator=torch.Generator().manual_seed(study))
        counter.update(torch.full((500,), study), Codes.from_dense(codes), y, y)
    best = np.array([[0] * 5 + [1] * 5 + [-1, 0]])
    lines = report(counter.result(), Kinds(np.zeros((1, 12, 3)), best))
    assert lines[1].split() == ["0", "5", "5", "1", "1.000"]
    assert lines[2].startswith("all")
    wrong = report(counter.result(), Kinds(np.zeros((1, 12, 3)), np.where(best == 0, 1, np.where(best == 1, 0, best))))
    assert wrong[1].split()[-1] == "0.000"

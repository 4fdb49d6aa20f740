"""Which images, features and samples are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clt_lightning.core.errors import UserError
from clt_lightning.report.cards import PER_QUANTILE, QUANTILE_ROWS, chosen_features, quantile_picks
from clt_lightning.report.choice import named, spread


@given(st.lists(st.integers(-1, 5), max_size=60), st.integers(0, 80))
def test_spread_is_even_over_the_labelled(labels: list[int], count: int) -> None:
    chosen = spread(labels, count)
    candidates = [i for i, label in enumerate(labels) if label >= 0] or list(range(len(labels)))
    assert len(chosen) == len(set(chosen)) == min(count, len(candidates))
    assert set(chosen) <= set(candidates)
    assert [labels[i] for i in chosen] == sorted(labels[i] for i in chosen)


def test_every_class_of_equal_size_gets_its_share() -> None:
    labels = [i % 10 for i in range(200)]
    assert [labels[i] for i in spread(labels, 20)] == sorted(list(range(10)) * 2)


def test_named_images() -> None:
    assert named(["a/1", "a/2", "b/1"], ["b/1", "a/1"], "--image") == [2, 0]
    with pytest.raises(UserError, match=r"--query 'c/9'.*'a/1'"):
        named(["a/1"], ["c/9"], "--query")


def test_dead_features_get_no_card_and_the_most_frequent_come_first() -> None:
    frequency = np.array([0.0, 0.3, 0.1, 0.0, 0.2])
    assert chosen_features(frequency, None).tolist() == [False, True, True, False, True]
    assert chosen_features(frequency, 2).tolist() == [False, True, False, False, True]
    assert chosen_features(frequency, 0).sum() == 0


@given(st.integers(0, 40), st.integers(0, 10))
def test_quantiles_go_from_strong_to_weak(count: int, padding: int) -> None:
    rows = quantile_picks(np.array([7] * count + [-1] * padding))
    if count < len(QUANTILE_ROWS):
        assert rows == []
        return
    flat = [place for row in rows for place in row]
    assert len(rows) == len(QUANTILE_ROWS)
    assert flat == sorted(set(flat))
    assert flat[0] == 0
    assert flat[-1] == count - 1 or len(rows[-1]) == 1
    assert all(1 <= len(row) <= PER_QUANTILE for row in rows)

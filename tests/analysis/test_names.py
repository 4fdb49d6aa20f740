"""Names of features: a lift that is sure, or what the feature is instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clt_lightning.analysis.collector import BINS, code_bins
from clt_lightning.analysis.names import KINDS, label_features

CLASSES, POSITIONS = 20, 17


def label(class_images: list[list[int]], frequency: float = 0.01, positions: torch.Tensor | None = None):  # type: ignore[no-untyped-def]
    images = torch.zeros(len(class_images), CLASSES, dtype=torch.int32)
    for row, counts in enumerate(class_images):
        images[row, : len(counts)] = torch.tensor(counts, dtype=torch.int32)
    total = torch.full((CLASSES,), 100, dtype=torch.int32)
    where = torch.ones(len(images), POSITIONS, dtype=torch.int32) if positions is None else positions
    return label_features(images, total, where[:, 1:], torch.full((len(images),), frequency))


def kinds(found) -> list[str]:  # type: ignore[no-untyped-def]
    return [KINDS[k] for k in found["name_kind"].tolist()]


def test_a_class_names_a_feature_only_where_its_lift_is_sure() -> None:
    found = label([[1, 0, 40, 2], [0, 0, 1], [5] * CLASSES, [6, 5, 5, 5, 5, 5, 5, 5, 5, 5] + [5] * 10, []])
    assert kinds(found) == ["class", "none", "none", "none", "none"]
    assert found["lift_class"].tolist()[:2] == [2, 2]
    assert int(found["lift_class"][4]) == -1
    # 40 of 43 images, where 1 of 20 was to be expected
    assert float(found["lift"][0]) == pytest.approx(40 / 43 * 20)
    assert float(found["lift_low"][0]) > 2 > float(found["lift_low"][1])
    assert float(found["lift"][1]) == pytest.approx(20)  # one image: a large lift, and no certainty
    assert bool(found["lift_high"][0] > found["lift"][0] > found["lift_low"][0])


def test_the_interval_holds_the_truth() -> None:
    """Random features: no class is lifted, and hardly ever may one say so, though the best of 20 is looked at."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.binomial(100, 0.2, (2000, CLASSES)).astype(np.int32))
    total = torch.full((CLASSES,), 100, dtype=torch.int32)
    found = label_features(images, total, torch.ones(2000, POSITIONS - 1), torch.full((2000,), 0.01))
    assert float((found["lift_low"] > 1).double().mean()) < 0.05
    assert kinds(found).count("class") == 0


def test_the_prior_counts() -> None:
    images = torch.tensor([[60, 20]], dtype=torch.int32)
    rare, common = (
        label_features(images, torch.tensor(total), torch.ones(1, POSITIONS - 1), torch.tensor([0.01]))
        for total in ([100, 900], [800, 200])
    )
    assert kinds(rare) == ["class"]
    assert float(rare["lift"][0]) == pytest.approx(0.75 / 0.1)
    assert kinds(common) == ["none"]


def test_dense_and_position_features_say_so() -> None:
    assert kinds(label([[5] * CLASSES], frequency=0.2)) == ["dense"]
    one_place = torch.zeros(3, POSITIONS, dtype=torch.int32)
    one_place[0, 4], one_place[1, 4] = 50, 10  # the second too seldom
    one_place[2, 0] = 500  # [CLS] is no place on the picture
    found = label([[5] * CLASSES] * 3, positions=one_place)
    assert kinds(found) == ["position", "none", "none"]
    assert float(found["position_spread"][0]) == pytest.approx(1 / 16)
    assert kinds(label([[0, 0, 40]], frequency=0.2)) == ["class"]  # a class is said first


def test_without_labels_nothing_has_a_class() -> None:
    found = label_features(torch.zeros(2, 0), torch.zeros(0), torch.ones(2, POSITIONS - 1), torch.full((2,), 0.01))
    assert kinds(found) == ["none", "none"]
    assert bool(found["lift"].isnan().all())


def test_bins_of_codes() -> None:
    values = torch.tensor([2.0**-12, 2.0**-13, 1.0, -1.0, 2.0**0.25 * 1.001, 15.99, 1e9])
    assert code_bins(values).tolist() == [0, 0, 48, 48, 49, BINS - 1, BINS - 1]

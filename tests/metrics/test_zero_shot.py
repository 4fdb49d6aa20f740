"""Zero-shot accuracy and logit KL against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.core.errors import UserError
from clt_lightning.metrics import LogitKL, ZeroShotAccuracy


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 50), classes=st.integers(2, 9))
def test_accuracies_equal_numpy(seed: int, batch: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 6, (50, classes)).astype(np.float32)  # many ties
    labels = rng.integers(-1, classes, 50)
    metric = ZeroShotAccuracy(classes)
    for a, b in zip(torch.from_numpy(logits).split(batch), torch.from_numpy(labels).split(batch)):
        metric.update(a, b)
    got = {name: float(value) for name, value in metric.compute().items()}
    keep = labels >= 0
    logits, labels = logits[keep], labels[keep]
    right = logits.argmax(1) == labels
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert got["images"] == keep.sum()
    assert got["top1"] == pytest.approx(right.mean())
    assert got["top5"] == pytest.approx((order == labels[:, None]).any(1).mean())
    assert got["per_class_recall"] == pytest.approx(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def test_a_constant_or_nan_prediction_earns_nothing() -> None:
    labels = torch.tensor([1, 2, 5])
    metric = ZeroShotAccuracy(6)
    metric.update(torch.zeros(3, 6), labels)
    assert float(metric.compute()["top1"]) == 0
    metric.reset()
    metric.update(torch.full((3, 6), torch.nan), labels)
    assert float(metric.compute()["top5"]) == 0


def test_unlabelled_images_do_not_count() -> None:
    metric = ZeroShotAccuracy(3)
    metric.update(torch.eye(3), torch.full((3,), -1))
    assert float(metric.compute()["images"]) == 0
    assert metric.compute()["top1"].isnan()
    metric.update(torch.eye(3), torch.tensor([0, -1, 1]))
    assert float(metric.compute()["top1"]) == 0.5


@pytest.mark.parametrize("label", [3, -2])
def test_a_label_outside_the_classes_is_named(label: int) -> None:
    with pytest.raises(UserError, match=rf"labels run from .*{label}.* 3 class names"):
        ZeroShotAccuracy(3).update(torch.eye(3), torch.tensor([0, label, 1]))


def cosines(rng: np.random.Generator, images: int = 64, classes: int = 10, width: int = 16) -> np.ndarray:
    e, w = rng.normal(size=(images, width)), rng.normal(size=(width, classes))
    found: np.ndarray = (e / np.linalg.norm(e, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=0))
    return found


def numpy_kl(p: np.ndarray, q: np.ndarray) -> float:
    def log_softmax(z: np.ndarray) -> np.ndarray:
        z = z - z.max(1, keepdims=True)
        found: np.ndarray = z - np.log(np.exp(z).sum(1, keepdims=True))
        return found

    a, b = log_softmax(100 * p), log_softmax(100 * q)
    return float((np.exp(a) * (a - b)).sum(1).mean())


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_kl_equals_numpy(batch: int) -> None:
    rng = np.random.default_rng(0)
    p, q = cosines(rng), cosines(rng)
    metric = LogitKL()
    for a, b in zip(torch.from_numpy(p).split(batch), torch.from_numpy(q).split(batch)):
        metric.update(a, b)
    assert float(metric.compute()) == pytest.approx(numpy_kl(p, q), rel=1e-12)
    metric.reset()
    metric.update(torch.from_numpy(p), torch.from_numpy(p))
    assert float(metric.compute()) == 0


def test_mistake_2_the_factor_100_is_applied_and_a_broken_model_shows() -> None:
    rng = np.random.default_rng(1)
    p, q = (torch.from_numpy(cosines(rng)) for _ in range(2))  # q knows nothing of p
    flattering, honest = LogitKL(scale=1.0), LogitKL()
    flattering.update(p, q)
    honest.update(p, q)
    assert float(flattering.compute()) < 0.2
    assert float(honest.compute()) > 5
    with pytest.raises(UserError, match=r"original holds .*cosines"):
        LogitKL().update(100 * p, 100 * q)

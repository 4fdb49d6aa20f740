"""Edits of the embedding: regressions and directions with known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.debias.codes import MeanCodes
from clt_lightning.analysis.debias.controls import attribute_differences, class_differences, least_squares_read
from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.analysis.debias.predictor import Embedded, within
from clt_lightning.analysis.debias.regression import Regression, regressed_out
from clt_lightning.analysis.debias.weights import attribute_weights, common_weights, lost_weights
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.analysis.debias.test_debias_parts import an_sae, pictures

GROUPS = Groups(4, 2, ("a", "b", "c", "d"))


def made(n: int = 2000, strength: float = 0.95, seed: int = 0) -> tuple[Embedded, Tensor, Tensor]:
    """Embeddings of two classes with a cue; the direction of the class, and of the cue."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(8, 8, generator=generator) / 3
    of_class, of_cue = torch.randn(2, 8, generator=generator)
    labels = torch.arange(n) % 2
    cue = torch.where(torch.rand(n, generator=generator) < strength, labels, 1 - labels)
    rows = labels[:, None] * of_class + cue[:, None] * of_cue + torch.randn(n, 8, generator=generator) @ spread
    return Embedded(rows, labels, 2 * labels + cue), of_class, of_cue


def told(part: Embedded, codes: Tensor) -> MeanCodes:
    assert part.groups is not None
    return MeanCodes(codes[:, None], part.labels, part.groups, part.embeddings, torch.arange(len(part)))


def made_codes(part: Embedded) -> Tensor:
    """Three features: 3 with the cue, noise, never on."""
    assert part.groups is not None
    noise = torch.randn(len(part), generator=torch.Generator().manual_seed(1))
    return torch.stack([3.0 * (part.groups % 2) + noise.roll(7) / 2, noise, torch.zeros(len(part))], 1)


FEATURES = [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("way", ["groups", "classes", "nothing"])
def test_weights_and_a_regression_find_the_cue_and_not_the_class(way: str) -> None:
    biased, _, of_cue = made(8000)
    unbiased, _, _ = made(8000, strength=0.5)
    codes = made_codes(unbiased)
    if way == "groups":
        weights = attribute_weights(told(unbiased, codes), GROUPS, FEATURES)
    elif way == "classes":
        weights = lost_weights(told(biased, made_codes(biased)), told(unbiased, codes), FEATURES)
    else:
        weights = common_weights(told(unbiased, codes), FEATURES[::2])
    if way != "nothing":
        assert abs(float(weights[1] / weights[0])) < 0.05
        assert float(weights[2]) == 0  # never on: no division by 0
    features = FEATURES[::2] if way == "nothing" else FEATURES
    codes = codes[:, [f for _, f in features]]
    fit = Regression.fit(features, weights, codes.mean(0), codes, unbiased.embeddings, unbiased.labels)
    assert unbiased.groups is not None
    left = unbiased.embeddings - (codes - fit.mean) @ fit.weights @ fit.slopes
    before, after = (
        sum(rows[unbiased.groups == i].mean(0) * sign for i, sign in enumerate((-0.5, 0.5, -0.5, 0.5)))
        for rows in (unbiased.embeddings, left)
    )
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    assert torch.allclose(before, of_cue, atol=0.05)
    assert float(after.norm()) < 0.15 * float(
        before.norm()
    )  # codes tell the cue with an error, a tenth of its variance
    of_class = left[unbiased.labels == 1].mean(0) - left[unbiased.labels == 0].mean(0)
    plain = unbiased.embeddings[unbiased.labels == 1].mean(0) - unbiased.embeddings[unbiased.labels == 0].mean(0)
    assert torch.allclose(of_class, plain, atol=0.1)


@pytest.mark.parametrize("kind", ["clt", "sae"])
def test_an_edit_of_the_running_model_is_the_formula(clip: FrozenCLIP, clt: CrossLayerTranscoder, kind: str) -> None:
    units, images = (clt if kind == "clt" else an_sae()), pictures(5)
    features = [(1, 3), (0, 2), (1, 7)]
    x = clip.read(images, str(units.sites.read), [0, 1])[str(units.sites.read)]
    rows = [units.encode_layer(x[i], i).dense_layer(0).unflatten(0, (5, -1)).mean(1)[:, f] for i, f in features]
    codes, plain = torch.stack(rows, 1).detach(), clip.encode_image(images)
    fit = Regression(tuple(features), torch.rand(3), torch.randn(3, 2), torch.randn(2, 16))
    with regressed_out(clip, units, fit):
        found = clip.encode_image(images, normalize=False)
    assert torch.allclose(found, plain - (codes - fit.mean) @ fit.weights @ fit.slopes, atol=1e-5)
    with regressed_out(clip, units, Regression((), fit.mean[:0], fit.weights[:0], fit.slopes)):
        assert torch.equal(clip.encode_image(images), plain)


def test_directions_of_an_attribute() -> None:
    part, _, of_cue = made()
    directions = attribute_differences(part, GROUPS)
    assert torch.allclose(directions[:, 0], 2 * of_cue, atol=0.3)  # the sum over two kinds
    read = least_squares_read(directions, part)
    assert torch.allclose(read.T @ directions, torch.eye(1), atol=1e-4)
    moved = part.embeddings - (part.embeddings - part.embeddings.mean(0)) @ read @ directions.T
    assert float(attribute_differences(Embedded(moved, part.labels, part.groups), GROUPS).norm()) < 1e-3
    # a plain projection moves embeddings of one class further for the same
    rows, unit = within(part.embeddings, part.labels), directions / directions.norm()
    assert float((rows @ read @ directions.T).norm()) < 0.9 * float((rows @ unit).norm())


def test_what_classes_lose_on_unbiased_images_is_the_cue() -> None:
    biased, of_class, of_cue = made()
    unbiased, _, _ = made(strength=0.5, seed=0)
    found = class_differences(biased, unbiased, 2)[:, 0]
    assert abs(float(torch.cosine_similarity(found, of_cue, 0))) > 0.97
    assert abs(float(torch.cosine_similarity(found, of_class, 0))) < 0.7

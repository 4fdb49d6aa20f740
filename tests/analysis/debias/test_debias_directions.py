"""Edits of the embedding: regressions and directions with known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.debias.controls import attribute_differences, class_differences, least_squares_read
from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.analysis.debias.predictor import Embedded, within
from clt_lightning.analysis.debias.regression import Regression, codes_of, regressed_out
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


def test_a_regression_finds_what_goes_with_codes_and_not_with_the_class() -> None:
    part, _, of_cue = made(8000)
    assert part.groups is not None
    cue = (part.groups % 2).float()
    noise = torch.randn(len(part), 2, generator=torch.Generator().manual_seed(1))
    codes = torch.stack([3 * cue, noise[:, 0], torch.zeros(len(part))], 1)
    fit = Regression.fit([(0, 5), (1, 2), (1, 3)], codes, part.embeddings, part.labels)
    slopes = fit.coefficients(3)
    # of the class, which goes with the cue in 95 % of the images, nothing is in it
    assert torch.allclose(slopes[0], of_cue / 3, atol=0.1)
    assert float(slopes[1].abs().max()) < 0.1
    assert torch.equal(slopes[2], torch.zeros(8))  # never on: nothing, and no division by 0
    left = part.embeddings - (codes - fit.mean) @ slopes
    means = [left[part.groups == i].mean(0) for i in range(4)]
    before = [part.embeddings[part.groups == i].mean(0) for i in range(4)]
    assert float((means[1] - means[0]).norm()) < 0.1 * float((before[1] - before[0]).norm())
    assert fit.coefficients(1).shape == (1, 8)


def test_features_that_go_together_do_not_run_away() -> None:
    part, _, of_cue = made()
    assert part.groups is not None
    cue = (part.groups % 2).float()
    codes = torch.stack([cue, cue], 1)
    slopes = Regression.fit([(0, 1), (0, 2)], codes, part.embeddings, part.labels).coefficients(2)
    assert torch.allclose(slopes[0], slopes[1], atol=1e-3)
    assert torch.allclose(slopes.sum(0), of_cue, atol=0.1)


@pytest.mark.parametrize("kind", ["clt", "sae"])
def test_an_edit_of_the_running_model_is_the_formula(clip: FrozenCLIP, clt: CrossLayerTranscoder, kind: str) -> None:
    units, images = (clt if kind == "clt" else an_sae()), pictures(6)
    features = [(1, 3), (0, 2), (1, 7)]
    batches = [
        {"image": images[:4], "label": torch.tensor([0, 1, 0, 1])},
        {"image": images[4:], "label": torch.tensor([1, -1])},
    ]
    codes = codes_of(clip, units, features, batches)
    assert codes.shape == (5, 3)
    x = clip.read(images, str(units.sites.read), [0, 1])[str(units.sites.read)]
    wanted = [units.encode_layer(x[i], i).dense_layer(0).unflatten(0, (6, -1)).mean(1)[:5, f] for i, f in features]
    assert torch.allclose(codes, torch.stack(wanted, 1), atol=1e-5)
    plain = clip.encode_image(images)
    fit = Regression.fit(features, codes + torch.rand(5, 3), plain[:5], torch.tensor([0, 1, 0, 1, 1]))
    with regressed_out(clip, units, fit, 2):
        found = clip.encode_image(images[:5], normalize=False)
    assert torch.allclose(found, plain[:5] - (codes - fit.mean)[:, :2] @ fit.coefficients(2), atol=1e-5)
    with regressed_out(clip, units, fit, 0):
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

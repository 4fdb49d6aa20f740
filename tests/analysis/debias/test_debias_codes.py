"""Mean codes of many images as they pass, and contrasts that count every image of a small group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.debias.choose import by_coactivation, by_codes, class_deltas
from clt_lightning.analysis.debias.codes import MeanCodes, codes_of
from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.analysis.debias.regression import Regression
from clt_lightning.analysis.debias.truth import auroc
from clt_lightning.analysis.debias.weights import attribute_weights
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.analysis import world

GROUPS = Groups(4, 2, tuple("abcd"))


def codes(activity: Tensor, labels: Tensor, groups: Tensor) -> MeanCodes:
    n = len(labels)
    return MeanCodes(activity[:, None], labels, groups, torch.zeros(n, 2), torch.arange(n))


def test_codes_are_those_of_the_chosen_labelled_images(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    images = torch.randn(9, 3, world.SIZE, world.SIZE, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, -1, 1, 1, 0, -1, 1, 0, 1])
    batches: list[dict[str, Any]] = [
        {"image": images[i : i + 4], "label": labels[i : i + 4], "group": labels[i : i + 4]} for i in range(0, 9, 4)
    ]
    labelled = (labels >= 0).nonzero().flatten()
    chosen = torch.tensor([0, 2, 5])
    found = codes_of(clip, clt, batches, chosen)
    own = images[labelled[chosen]]
    acts = clip.capture(own)
    wanted = clt.encode(acts.x).dense().detach().unflatten(1, (3, -1)).mean(2)
    assert found.labels.tolist() == labels[labelled[chosen]].tolist() == found.groups.tolist()
    for layer in range(clt.n_layers):
        assert torch.allclose(found.layer(layer), wanted[layer], rtol=1e-3, atol=1e-5)
    some = found.select(torch.tensor([2, 0]))
    assert torch.equal(some.picked([(1, 3), (0, 2)])[0], found.picked([(1, 3), (0, 2)])[2])
    assert torch.allclose(found.embeddings, clip.encode_image(own), atol=1e-5)


def test_a_weak_cue_is_found_among_many_images_of_uneven_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    n, width, carriers = 4000, 200, 20
    labels = torch.arange(n) % 2
    shift = torch.zeros(width)
    shift[:carriers] = 0.4

    def draw(strength: float) -> MeanCodes:
        cue = torch.where(torch.rand(n, generator=generator) < strength, labels, 1 - labels)
        # the class moves every code, the cue a few of them
        rows = torch.randn(n, width, generator=generator) + labels[:, None] + cue[:, None] * shift
        return codes(rows, labels, 2 * labels + cue)

    biased, unbiased = draw(0.95), draw(0.5)

    def told(score: Tensor) -> float:
        return float(auroc(score[0, :carriers, None], score[0, carriers:, None]))

    few = GROUPS.at_most(biased.groups, 16, 0)
    assert told(by_codes(biased, GROUPS)) > 0.97 > 0.9 > told(by_codes(biased.select(few), GROUPS))
    assert told(by_coactivation(biased, unbiased)) > 0.99
    half = torch.arange(128)
    assert told(by_coactivation(biased.select(half), unbiased.select(half))) < 0.95


def test_a_cue_that_points_two_ways_in_two_classes_is_none() -> None:
    """What differs between values one way in one class and the other way in the other goes with groups, not the cue."""
    groups = torch.arange(400) % 4
    cue, kind = groups % 2, groups // 2
    rows = torch.stack([cue.float(), (cue ^ kind).float()], 1)
    assert by_codes(codes(rows, kind, groups), GROUPS)[0].tolist() == [1.0, 0.0]


def test_deltas_of_classes_are_aurocs_against_the_others() -> None:
    rows = torch.randint(0, 4, (60, 300), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(60) % 3
    found = class_deltas(rows, labels, 4)
    for label in range(3):
        assert torch.allclose(found[label], 2 * auroc(rows[labels == label], rows[labels != label]) - 1, atol=1e-6)
    assert not bool(found[3].any())
    assert not bool(class_deltas(rows, torch.zeros(60, dtype=torch.long), 1).any())


@pytest.mark.parametrize("times", [(3, 1, 1, 2), (1, 1, 5, 1)])
def test_groups_of_uneven_size_count_alike(times: tuple[int, ...]) -> None:
    """Images repeated unevenly over groups give the fit of the images once each."""
    generator = torch.Generator().manual_seed(2)
    groups = torch.arange(40) % 4
    even = codes(torch.randn(40, 3, generator=generator), groups // 2, groups)
    embeddings = torch.randn(40, 5, generator=generator)
    chosen = torch.arange(40).repeat_interleave(torch.tensor(times)[groups])
    features = [(0, 0), (0, 2)]
    fits = []
    for index in (torch.arange(40), chosen):
        part = even.select(index)
        weights = attribute_weights(part, GROUPS, features)
        weight = 1 / torch.bincount(part.groups)[part.groups].float()
        mean = torch.zeros(2)
        fits.append(
            Regression.fit(features, weights, mean, part.picked(features), embeddings[index], part.labels, weight)
        )
    assert torch.allclose(fits[0].weights, fits[1].weights, rtol=1e-4)
    assert torch.allclose(fits[0].slopes, fits[1].slopes, rtol=1e-4)


def test_at_most_so_many_of_each_group() -> None:
    groups = torch.tensor([0] * 10 + [1] * 3 + [2] * 7 + [3])
    chosen = GROUPS.at_most(groups, 4, 0)
    assert torch.bincount(groups[chosen]).tolist() == [4, 3, 4, 1]
    assert torch.equal(chosen, chosen.unique())
    assert torch.bincount(groups[GROUPS.balanced(groups, 0)]).tolist() == [1, 1, 1, 1]

"""Studies of images: sums that are logits, effects that are the model's, ablations that are real."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.effects import total_effects
from clt_lightning.analysis.effects.live import per_image
from clt_lightning.analysis.study import Study, StudyOptions, study_images
from clt_lightning.analysis.terms import term_rows
from clt_lightning.analysis.tower import observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import CLASSES, LAYERS, POSITIONS, TEMPLATES, Made, make_clt

N = 5
EVERYTHING = StudyOptions(classes=5, shown=1000, full=True)


@pytest.fixture(scope="module")
def head(clip: FrozenCLIP) -> Tensor:
    return clip.zero_shot_head(CLASSES, TEMPLATES)


def images() -> Tensor:
    return Made(n=N).everything()[0]


def logits_of(clip: FrozenCLIP, head: Tensor) -> Tensor:
    return 100 * (clip.encode_image(images()) @ head).double()


def without(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, image: Tensor, gone: Sequence[tuple[int, int]], head: Tensor
) -> Tensor:
    """Logits with what some features write taken out of the MLP outputs, in plain code."""
    acts = clip.capture(image[None])
    codes = clt.encode(acts.y if clt.topology == "sae" else acts.x).dense().detach()

    def branch(j: int, x: Tensor, compute_y: object) -> Tensor:
        y: Tensor = compute_y()  # type: ignore[operator]
        for layer, f in gone:
            if clt.writes(layer, j):
                y = y - codes[layer, :, f].view(1, -1, 1) * clt.W_dec[layer][f, j - layer] * clt.y_scale[j]
        return y

    with torch.no_grad(), clip.mlp_override(branch):
        return 100 * (clip.encode_image(image[None]) @ head)[0].double()


@pytest.mark.parametrize(
    ("topology", "skip"), [("cross_layer", False), ("cross_layer", True), ("per_layer", False), ("sae", False)]
)
def test_terms_sum_to_every_logit(clip: FrozenCLIP, head: Tensor, topology: str, skip: bool) -> None:
    clt = make_clt(topology, skip)
    found = study_images(clip, clt, images(), head, options=EVERYTHING)
    untouched = logits_of(clip, head)
    with torch.no_grad(), replaced(clip, clt):
        cascade = logits_of(clip, head)
    rows = term_rows(LAYERS)
    for n, study in enumerate(found):
        assert study.terms is not None
        assert study.replaced_terms is not None
        torch.testing.assert_close(study.logits, untouched[n], atol=2e-4, rtol=0)
        torch.testing.assert_close(study.replaced, cascade[n], atol=2e-4, rtol=0)
        torch.testing.assert_close(study.terms.sum(0), study.logits, atol=2e-4, rtol=0)
        torch.testing.assert_close(study.replaced_terms.sum(0), study.replaced, atol=2e-4, rtol=0)
        errors = [row for row, (kind, _) in enumerate(rows) if kind == "error"]
        assert study.replaced_terms[errors].abs().max() < 1e-3 < study.terms[errors].abs().max()
        skips = [row for row, (kind, _) in enumerate(rows) if kind == "skip"]
        assert bool(study.terms[skips].any()) == skip
        # what the features of a layer add directly is what each of them adds
        assert study.direct is not None
        for layer in range(LAYERS):
            mine = study.direct[study.layer == layer][:, :-1].sum(0)
            theirs = study.terms[rows.index(("features", layer))][study.classes]
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_effects_are_those_of_one_gradient(clip: FrozenCLIP, head: Tensor) -> None:
    clt = make_clt()
    found = study_images(clip, clt, images(), head, options=EVERYTHING)
    seen = observe(clip, images())
    codes = clt.encode(seen.x)
    whole = torch.cat([head.T, head.mean(1)[None]])[:, None].expand(-1, N, -1)
    for layer, effects in enumerate(total_effects(clip, clt, seen, codes, whole)):
        image, feature, sums = per_image(codes, layer, effects, N)
        for n, study in enumerate(found):
            mine = study.layer == layer
            assert study.feature[mine].tolist() == feature[image == n].tolist()
            for column, c in enumerate(study.classes.tolist()):
                torch.testing.assert_close(study.total[mine, column], sums[c, image == n], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(study.total[mine, -1], sums[-1, image == n], atol=1e-4, rtol=1e-3)
    for study in found:
        more, less = study.questions[0]
        effect, place = study.effect(more, less), 0
        for part in study.codes:
            here = part.effects[0].sum(-1)
            torch.testing.assert_close(here.double(), effect[place : place + len(here)], atol=1e-4, rtol=1e-3)
            place += len(here)
        assert place == len(effect)
    with pytest.raises(UserError, match="class 7 was not asked"):
        found[0].effect(7)


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
@pytest.mark.parametrize("full", [False, True])
def test_ablations_are_real(clip: FrozenCLIP, head: Tensor, topology: str, full: bool) -> None:
    clt = make_clt(topology)
    options = StudyOptions(classes=4, shown=6, deciding=3, full=full)
    found = study_images(clip, clt, images(), head, options=options)
    for study, image in zip(found, images()):
        more, less = study.questions[0]
        effect = study.effect(more, less)
        singles = [a for a in study.ablations if len(a.rows) == 1]
        assert len(singles) == (min(12, len(effect)) if full else 3)
        for ablation in [*singles[:2], study.ablations[-1]]:
            gone = [(int(study.layer[row]), int(study.feature[row])) for row in ablation.rows]
            torch.testing.assert_close(ablation.logits, without(clip, clt, image, gone, head), atol=3e-4, rtol=0)
            real = (study.logits - ablation.logits)[more] - (study.logits - ablation.logits)[less]
            if full:  # along the path, which is what happens
                assert ablation.predicted == pytest.approx(float(real), abs=0.02 + 0.02 * abs(float(real)))
                if len(ablation.rows) == 1:
                    assert float(study.integrated[0, ablation.rows[0]]) == pytest.approx(ablation.predicted)
            else:
                assert ablation.predicted == pytest.approx(float(effect[ablation.rows].sum()), abs=1e-6)
        assert len(study.ablations[-1].rows) == 3
        predicted = [a.predicted for a in singles]
        assert predicted == sorted(predicted, reverse=True)
        if not full:
            best = effect.topk(3).indices.tolist()
            assert [a.rows[0] for a in singles] == study.ablations[-1].rows == best
            assert bool(study.integrated.isnan().all())


def test_what_is_kept_ranks_any_two_classes(clip: FrozenCLIP, head: Tensor) -> None:
    """For every class, pair and mean: the largest and the smallest are among what a page holds."""
    clt = make_clt()
    for study in study_images(clip, clt, images(), head, options=StudyOptions(classes=5, shown=3)):
        assert 3 < int(study.kept.sum()) < len(study.kept)
        columns = study.total
        for a in range(6):
            for other in (torch.zeros(len(columns)), *columns.T):
                effect = columns[:, a] - other
                if bool(effect.any()):
                    ends = [*effect.topk(3).indices, *effect.topk(3, largest=False).indices]
                    assert all(study.kept[row] for row in ends)
        assert study.direct is not None
        assert bool((study.direct.isnan().any(1) == ~study.kept).all())


def test_a_mistake_asks_for_its_own_class_too(clip: FrozenCLIP, head: Tensor) -> None:
    clt, order = make_clt(), logits_of(clip, head).argsort(1, descending=True)
    labels = [int(order[0, 4]), int(order[1, 1]), int(order[2, 0]), -1, int(order[4, 3])]
    found = study_images(clip, clt, images(), head, labels, StudyOptions(classes=3))
    for n, (study, label) in enumerate(zip(found, labels)):
        pair = (int(order[n, 0]), int(order[n, 1]))
        others = [(pair[0], label)] if n in (0, 4) else []
        assert study.questions == [pair, *others]
        assert len(study.classes) == 3
        assert study.classes[:2].tolist() == list(pair)
        assert label < 0 or label in study.classes.tolist()
        assert {a.question for a in study.ablations} == set(range(len(study.questions)))


def test_codes_are_the_encoders(clip: FrozenCLIP) -> None:
    clt = make_clt()
    dense = clt.encode(clip.capture(images()).x).dense().detach().unflatten(1, (N, POSITIONS))
    alone = study_images(clip, clt, images())
    for n, study in enumerate(alone):
        for layer, part in enumerate(study.codes):
            torch.testing.assert_close(part.maps, dense[layer, n][:, part.features].T)
            assert int((dense[layer, n] != 0).sum()) == int((part.maps != 0).sum())
        assert len(study.logits) == len(study.layer) == 0
        assert study.questions == []
        assert study.ablations == []
    with pytest.raises(UserError, match=r"takes images \(n, 3, size, size\)"):
        study_images(clip, clt, images()[0])
    with pytest.raises(UserError, match="2 labels for 5 images"):
        study_images(clip, clt, images(), labels=[0, 1])


def test_alone_and_in_a_batch(clip: FrozenCLIP, head: Tensor) -> None:
    clt = make_clt(skip=True)
    together: list[Study] = study_images(clip, clt, images(), head, options=StudyOptions())
    for n, image in enumerate(images()):
        (alone,) = study_images(clip, clt, image[None], head, options=StudyOptions())
        torch.testing.assert_close(alone.logits, together[n].logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.total, together[n].total, atol=1e-3, rtol=1e-3)
        assert [a.rows for a in alone.ablations] == [a.rows for a in together[n].ablations]

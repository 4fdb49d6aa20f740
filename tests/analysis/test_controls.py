"""Controls beside every window and single layer: random features, a part of the images, skip and bias alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from clt_lightning.analysis import (
    Arm,
    ArmRunner,
    CascadeOptions,
    EvaluateOptions,
    Evaluation,
    FaithfulnessOptions,
    FeatureOptions,
    PopulationOptions,
    evaluate,
    observe,
    plan_arms,
)
from clt_lightning.analysis.arms import mixed_up, sampled
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import CLASSES, LAYERS, TEMPLATES, Made, make_clt

KINDS = ("true_x", "mean_ablated", "zero_ablated", "random")


def run(clip: FrozenCLIP, clt: CrossLayerTranscoder, share: float, batch_size: int = 8) -> Evaluation:
    data = Made(batch_size=batch_size)
    options = EvaluateOptions(
        cascade=CascadeOptions(firsts=[0, 1], control_share=share),
        faithfulness=FaithfulnessOptions(draws=2),
        features=FeatureOptions(enabled=False),
        population=PopulationOptions(resamples=10),
        bootstrap=20,
        retrieval=0,
    )
    train = data.eval_dataloader("train")
    return evaluate(clip, clt, data.test_dataloader(), CLASSES, TEMPLATES, train, options, progress=False)[0]


@pytest.mark.parametrize("n_layers", [1, 3, 12])
def test_every_window_and_single_layer_has_every_control(n_layers: int) -> None:
    arms = plan_arms(CascadeOptions(), n_layers)
    assert len(set(arms)) == len(arms)
    for arm in arms:
        if arm.kind == "replaced":
            for kind in KINDS:
                (control,) = [a for a in arms if a == Arm(kind, arm.first, arm.last, arm.tokens)]
                window_at_all = (
                    arm.tokens == "all"
                    and arm.last == n_layers - 1
                    and (arm.first, arm.last)
                    in {(a.first, a.last) for a in arms if a.kind == "replaced" and a.tokens == "cls"}
                )
                assert control.sampled != window_at_all
    assert not any(arm.sampled for arm in plan_arms(CascadeOptions(control_share=1.0), n_layers))
    few = plan_arms(CascadeOptions(control_share=0.0), n_layers)
    assert {arm.tokens for arm in few if arm.kind in KINDS} == {"all"}
    with pytest.raises(UserError, match="control_share must be between 0 and 1"):
        CascadeOptions(control_share=1.5)


def test_random_features_write_what_others_would(clip: FrozenCLIP) -> None:
    clt, images = make_clt(), Made().everything()[0][:4]
    seen = observe(clip, images)
    codes = clt.encode(seen.x)
    mixed = mixed_up(codes)
    before, after = codes.dense().detach(), mixed.dense().detach()
    assert not torch.equal(before, after)
    for layer in range(LAYERS):
        torch.testing.assert_close(before[layer].sort(1).values, after[layer].sort(1).values)
        # one order for all tokens: a feature's codes move together
        columns = {tuple(c.tolist()) for c in before[layer].T}
        assert columns == {tuple(c.tolist()) for c in after[layer].T}
    y: Tensor = clt.decode(after, seen.x).detach().unflatten(1, (4, -1))
    found = ArmRunner(clip, clt).embeddings(Arm("random", 0, LAYERS - 1, "all"), seen, codes, clt(seen.x).y_hat)

    def branch(layer: int, x: Tensor, compute_y: object) -> Tensor:
        instead: Tensor = y[layer]
        return instead

    with torch.no_grad(), clip.mlp_override(branch):
        torch.testing.assert_close(found, clip.encode_image(images), atol=1e-5, rtol=0)


def test_a_part_of_the_images_by_key() -> None:
    keys = [f"{n // 100:05d}/{n:08d}" for n in range(4000)]
    chosen = sampled(keys, 0.2)
    assert 0.17 < float(chosen.float().mean()) < 0.23
    order = np.random.default_rng(0).permutation(4000)
    assert torch.equal(sampled([keys[n] for n in order], 0.2), chosen[order.tolist()])
    assert bool(sampled(keys, 1.0).all())
    assert not bool(sampled(keys, 0.0).any())
    assert bool((sampled(keys, 0.5) | ~chosen).all())  # a larger share holds the smaller


def test_controls_on_a_part_are_those_of_its_images(clip: FrozenCLIP) -> None:
    clt = make_clt()
    whole, part, again = run(clip, clt, 1.0), run(clip, clt, 0.5), run(clip, clt, 0.5, batch_size=3)
    chosen = sampled(part.keys.tolist(), 0.5).numpy()
    labelled = part.labels[chosen] >= 0
    assert 3 < labelled.sum() < 20
    assert [r.arm for r in whole.arms] == [r.arm for r in part.arms] == [r.arm for r in again.arms]
    seen = 0
    for index, (all_images, some) in enumerate(zip(whole.arms, part.arms)):
        if not some.arm.sampled:
            for name in ("top1", "drop", "kl"):
                mine, theirs = getattr(some, name), getattr(all_images, name)
                for end in ("value", "low", "high"):
                    assert getattr(mine, end) == pytest.approx(getattr(theirs, end), rel=1e-9, abs=1e-12)
            continue
        seen += 1
        right = whole.rank[index][chosen][labelled] == 0
        original = whole.rank[0][chosen][labelled] == 0
        assert some.n == labelled.sum()
        assert some.top1.value == pytest.approx(right.mean())
        assert some.drop.value == pytest.approx((original * 1.0 - right).mean())
        assert some.kl.value == pytest.approx(whole.kl[index][chosen].mean(), rel=1e-4, abs=1e-6)
        assert (part.rank[index][~chosen] == -2).all()
        assert (part.predicted[index][~chosen] == -2).all()
        assert np.isnan(part.kl[index][~chosen]).all()
        assert again.arms[index].top1 == some.top1
    assert seen > 20
    json.dumps(part.to_json(), allow_nan=False)
    # what the last MLP writes at patches reaches nothing
    last = whole.arm("zero_ablated", LAYERS - 1, LAYERS - 1, "all")
    assert last.kl.value > 0.01


def test_too_few_images_for_a_part(clip: FrozenCLIP) -> None:
    """None of the images is chosen: the arms are there, without numbers."""
    found = run(clip, make_clt(), 1e-6)
    some = [result for result in found.arms if result.arm.sampled]
    assert {result.n for result in some} == {0}
    assert all(np.isnan(result.top1.value) for result in some)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert '"kind": "random"' in text


@pytest.mark.parametrize("skip", [False, True])
def test_skip_and_bias_alone(clip: FrozenCLIP, skip: bool) -> None:
    clt = make_clt(skip=skip)
    found = run(clip, clt, 0.0)
    images, labels, _ = Made().everything()
    head = clip.zero_shot_head(CLASSES, TEMPLATES).double()
    original = (100 * clip.encode_image(images).double() @ head).log_softmax(1)
    known = labels >= 0

    def nothing(layer: int, terms: Tensor) -> Tensor:
        return torch.zeros_like(terms)

    assert len(found.faithfulness) == 8
    for result in found.faithfulness:
        with torch.no_grad(), replaced(clip, clt, [LAYERS - 1], result.tokens, edit=nothing):
            logits = (100 * clip.encode_image(images).double() @ head).log_softmax(1)
        top1, kl = result.rest
        assert top1.value == pytest.approx((logits.argmax(1).numpy() == labels)[known].mean())
        assert kl == pytest.approx(float((original.exp() * (original - logits)).sum(1).mean()), abs=2e-4)
        if result.ablation == "zero":  # the last point of the curve is the same
            assert result.drop_top[0][-1].value == top1.value
        assert result.to_json()["rest"]["kl"] == pytest.approx(kl)

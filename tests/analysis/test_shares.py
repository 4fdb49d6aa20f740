"""Who makes the logit, and what skip and features are worth alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clt_lightning.analysis import Arm, ArmRunner, observe, plan_arms
from clt_lightning.analysis.arms import CascadeOptions
from clt_lightning.analysis.decomposition import decompose
from clt_lightning.analysis.shares import PARTS, LogitShares
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError

from .world import CLASSES, LAYERS, POSITIONS, TEMPLATES, WIDTH, Made, make_clt


@pytest.fixture(scope="module")
def head(clip: FrozenCLIP) -> Tensor:
    return clip.zero_shot_head(CLASSES, TEMPLATES)


@pytest.mark.parametrize("skip", [False, True])
def test_parts_sum_to_logit_and_margin_and_agree_with_the_decomposition(
    clip: FrozenCLIP, head: Tensor, skip: bool
) -> None:
    clt, images = make_clt(skip=skip), Made(n=7).everything()[0]
    seen = observe(clip, images)
    out = clt(seen.x)
    shares = LogitShares(clip, clt, head)
    parts = shares.parts(seen, out.y_hat)
    logits = (100 * seen.embeddings @ head).double()
    best = logits.topk(2, 1)
    torch.testing.assert_close(parts[:, 0].sum(1), best.values[:, 0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(parts[:, 1].sum(1), best.values[:, 0] - best.values[:, 1], atol=1e-3, rtol=1e-4)
    assert bool(parts[:, 0, PARTS.index("skip")].any()) == skip
    # one image's decomposition, made in another way
    one = observe(clip, images[2:3])
    text = head[:, int(best.indices[2, 0])]
    added = one.y.unflatten(1, (1, POSITIONS))[:, 0, 0]
    d = decompose(clip, clt, one, clt.encode(one.x), added, text, replaced=False)
    expected: list[Any] = [
        d.embedding,
        d.attention.sum(),
        d.features.sum(),
        d.skip.sum(),
        d.bias.sum(),
        d.error.sum(),
        d.norm_bias,
    ]
    np.testing.assert_allclose(parts[2, 0].detach().numpy(), [float(v) for v in expected], atol=1e-3)


def test_means_and_intervals_do_not_depend_on_batches(clip: FrozenCLIP, head: Tensor) -> None:
    clt = make_clt(skip=True)
    images, _, keys = Made(n=12).everything()
    found = []
    for step in (12, 5):
        shares = LogitShares(clip, clt, head)
        for start in range(0, 12, step):
            seen = observe(clip, images[start : start + step])
            shares.update(keys[start : start + step], seen, clt(seen.x).y_hat.detach())
        found.append(shares.result(200, 0))
    for target in ("logit", "margin"):
        for part in (*PARTS, "sum"):
            a, b = (result[target][part] for result in found)
            assert a.value == pytest.approx(b.value, abs=1e-3)
            assert a.low <= a.value <= a.high
        total = sum(found[0][target][part].value for part in PARTS)
        assert total == pytest.approx(found[0][target]["sum"].value, abs=1e-6)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
@pytest.mark.parametrize("kind", ["skip_alone", "features_alone"])
def test_skip_and_features_alone(clip: FrozenCLIP, kind: str, tokens: str, first: int) -> None:
    clt, images = make_clt(skip=True), Made(n=5).everything()[0]
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, LAYERS, 2, WIDTH, generator=generator)
    place = torch.tensor([0] + [1] * (POSITIONS - 1))
    chosen = {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}[tokens]
    memory: dict[int, Tensor] = {}

    def branch(layer: int, x: Tensor, compute_y: object) -> Tensor:
        y: Tensor = compute_y().clone()  # type: ignore[operator]
        # per_layer reading would miss features of earlier layers: all codes so far are kept
        memory[layer] = x.flatten(0, 1)
        if layer < first:  # left as it is; its features write into the window
            return y
        features = torch.zeros_like(y)
        for source in range(layer + 1):
            codes = clt.encode_layer(memory[source], source).dense_layer(0)
            features += (codes @ clt.W_dec[source][:, layer - source] * clt.y_scale[layer]).view_as(y)
        skip = clt.skip_term(x.flatten(0, 1), layer).view_as(y)
        if kind == "skip_alone":
            new = means[0, layer, place] + skip + clt.bias(layer)
        else:
            new = features + means[1, layer, place] + clt.bias(layer)
        y[:, chosen] = new[:, chosen]
        return y

    with torch.no_grad(), clip.mlp_override(branch):
        expected = clip.encode_image(images)
    seen = observe(clip, images)
    runner = ArmRunner(clip, clt, feature_means=means[0], skip_means=means[1])
    codes = clt.encode(seen.x)
    found = runner.embeddings(Arm(kind, first, LAYERS - 1, tokens), seen, codes, clt.decode(codes, seen.x))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - seen.embeddings).abs().max() > 1e-3
    with pytest.raises(UserError, match=kind):
        ArmRunner(clip, clt).embeddings(Arm(kind, 0, 1, tokens), seen, codes, clt.decode(codes, seen.x))


def test_arms_of_the_skip_are_planned_only_where_there_is_one() -> None:
    with_skip, without = (plan_arms(CascadeOptions(), 4, skip=skip) for skip in (True, False))
    kinds = {arm.kind for arm in with_skip} - {arm.kind for arm in without}
    assert kinds == {"skip_alone", "features_alone"}
    assert Arm("skip_alone", 0, 3, "all") in with_skip

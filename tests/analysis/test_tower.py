"""The tower in pieces gives the numbers of the tower in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis import Arm, ArmRunner, finish, observe, plan_arms
from clt_lightning.analysis.arms import CascadeOptions, default_firsts
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import LAYERS, POSITIONS, Made, make_clip, make_clt, register


def test_finishing_from_any_layer_gives_the_embedding(clip: FrozenCLIP) -> None:
    images = Made(n=3).everything()[0]
    seen = observe(clip, images, before_mlp=range(LAYERS))
    whole = clip.encode_image(images)
    assert torch.allclose(seen.embeddings, whole, atol=1e-6)
    for first in range(LAYERS):
        assert torch.allclose(finish(clip, seen.streams[first], first), whole, atol=1e-6)
    y = seen.y.view(LAYERS, 3, POSITIONS, -1)
    for layer in range(LAYERS):
        after = seen.before_mlp[layer] + y[layer]
        assert torch.allclose(finish(clip, after, layer + 1), whole, atol=1e-6)
        entry = seen.streams[layer][:, 0] + seen.attention[layer]
        assert torch.allclose(entry, seen.before_mlp[layer][:, 0], atol=1e-6)


@pytest.mark.parametrize("vision", [{"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_other_ways_of_pooling(tmp_path: Path, vision: dict[str, Any]) -> None:
    name = f"tiny-pool-{len(vision)}"
    register(tmp_path, name, **vision)
    other, images = make_clip(name), Made(n=3).everything()[0]
    seen = observe(other, images)
    assert torch.allclose(finish(other, seen.streams[1], 1), other.encode_image(images), atol=1e-6)


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer", "sae"])
@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
def test_arms_equal_whole_forwards(clip: FrozenCLIP, topology: str, tokens: str) -> None:
    clt, images = make_clt(topology), Made(n=4).everything()[0]
    means = torch.randn(LAYERS, 2, clip.d_model, generator=torch.Generator().manual_seed(0))
    seen = observe(clip, images)
    out = clt(seen.y if topology == "sae" else seen.x)
    runner = ArmRunner(clip, clt, means)
    positions = {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}[tokens]
    for first, last in ((0, 2), (1, 2), (1, 1), (2, 2)):
        found = runner.embeddings(Arm("replaced", first, last, tokens), seen, out.codes, out.y_hat)
        with torch.no_grad(), replaced(clip, clt, range(first, last + 1), tokens):
            whole = clip.encode_image(images)
        assert torch.allclose(found, whole, atol=1e-5), (first, last)
        if (tokens, first) != ("patch", 2):  # after the last attention nothing reads the patches
            assert not torch.allclose(found, seen.embeddings, atol=1e-3)
        y_hat = out.y_hat.detach().view(LAYERS, 4, POSITIONS, -1)
        by_position = torch.cat([means[:, :1], means[:, 1:].expand(-1, POSITIONS - 1, -1)], 1)
        for kind, new in (("true_x", y_hat), ("mean_ablated", by_position[:, None]), ("zero_ablated", 0 * y_hat)):

            def hook(layer, module, args, y, new=new):  # type: ignore[no-untyped-def]
                y = y.clone()
                y[:, positions] = new[layer].expand_as(y)[:, positions]
                return y

            handles = [
                clip.blocks[i].get_submodule("mlp").register_forward_hook(lambda m, a, y, i=i, h=hook: h(i, m, a, y))
                for i in range(first, last + 1)
            ]
            whole = clip.encode_image(images)
            for handle in handles:
                handle.remove()
            found = runner.embeddings(Arm(kind, first, last, tokens), seen, out.codes, out.y_hat)
            assert torch.allclose(found, whole, atol=1e-5), kind


def test_the_last_attention_is_made_at_cls_alone_unless_it_is_looked_at(
    clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    clt, images = make_clt("cross_layer"), Made(n=3).everything()[0]
    runner, arm = ArmRunner(clip, clt), Arm("replaced", 0, LAYERS - 1, "all")
    seen = observe(clip, images, clt=clt, needs=runner.needs([arm]))
    out = clt(seen.x)
    alone = runner.embeddings(arm, seen, out.codes, out.y_hat)
    seen_here: list[Tensor] = []
    with clip.watch(lambda layer, y: seen_here.append(y), [LAYERS - 1], site="attn_out"):
        watched = runner.embeddings(arm, seen, out.codes, out.y_hat)
    (y,) = seen_here
    assert bool((y.abs().sum(-1) > 0).all())  # all of it, where someone looks
    torch.testing.assert_close(alone, watched, atol=1e-6, rtol=0)
    asked: list[int] = []
    family = clip.family
    own = type(family).attention_at_cls

    def at_cls(layer: int, x: Tensor) -> Tensor | None:
        asked.append(layer)
        return own(family, layer, x)

    monkeypatch.setattr(family, "attention_at_cls", at_cls)
    runner.embeddings(arm, seen, out.codes, out.y_hat)
    assert asked == [LAYERS - 1]


def test_plans() -> None:
    assert default_firsts(12) == [0, 3, 7, 10]
    assert default_firsts(4) == [0, 1, 2, 3]
    assert default_firsts(1) == [0]
    arms = plan_arms(CascadeOptions(), 4)
    assert arms[0] == Arm("original")
    assert len(arms) == len(set(arms))
    assert Arm("replaced", 0, 3, "cls") in arms
    assert Arm("replaced", 1, 1, "all") in arms
    assert Arm("zero_ablated", 2, 3, "all") in arms
    assert Arm("true_x", 0, 3, "all").name == "true_x/0-3/all"


def test_mistakes(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    with pytest.raises(UserError, match=r"cascade\.firsts=\[0, 5\]: \[5\] do not exist"):
        plan_arms(CascadeOptions(firsts=[0, 5]), 3)
    with pytest.raises(UserError, match=r"cascade\.controls.*shuffled"):
        CascadeOptions(controls=["shuffled"])
    with pytest.raises(UserError, match=r"cascade\.token_sets"):
        CascadeOptions(token_sets=["class"])
    seen = observe(clip, Made(n=1).everything()[0])
    out = clt(seen.x)
    with pytest.raises(UserError, match="means"):
        ArmRunner(clip, clt).embeddings(Arm("mean_ablated", 0, 2, "all"), seen, out.codes, out.y_hat)

"""The CLIP that comes with the package: small, able, in need of its MLPs; and the script that makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.demo import train
from clt_lightning.backbone.clip.demo.evaluate import evaluate
from clt_lightning.backbone.clip.source import DEMO_CHECKPOINT
from clt_lightning.core.errors import UserError
from clt_lightning.data.worlds.renders import CLASSNAMES, HELD_OUT, TEMPLATES, render


@pytest.fixture(scope="module")
def demo() -> FrozenCLIP:
    return FrozenCLIP(pretrained="demo")


def test_it_is_small_and_says_what_it_is(demo: FrozenCLIP) -> None:
    assert DEMO_CHECKPOINT.stat().st_size <= 8_000_000
    assert (demo.pretrained, demo.image_size, demo.grid) == ("demo", 48, (6, 6))
    assert demo.n_layers >= 4
    assert demo.describe()["gelu"] == "gelu"
    # every word of every prompt is in the vocabulary
    prompts = [template.replace("{c}", name) for template in TEMPLATES for name in CLASSNAMES]
    unknown = demo.tokenizer(["zebra"])[0, 1]
    assert not (demo.tokenizer(prompts) == unknown).any()


def test_zero_shot_on_renders_it_never_saw(demo: FrozenCLIP) -> None:
    """1,000 renders: a standard error of 0.7 points. And the same by PIL and `preprocess` as in training."""
    drawn = [render(77, i) for i in range(1000)]
    images = torch.stack([demo.preprocess(r.image) for r in drawn])
    fast = train.as_input(torch.from_numpy(np.stack([np.asarray(r.image) for r in drawn[:8]])))
    torch.testing.assert_close(images[:8], fast)
    labels = torch.tensor([r.label for r in drawn])
    found = evaluate(demo, images, labels, CLASSNAMES, TEMPLATES, HELD_OUT)
    assert found["top1"] >= 86
    assert found["top1_held_out"] >= 62
    assert found["top1"] - found["top1_mean_ablated"] >= 30
    assert found["top1"] - found["top1_mean_ablated_by_position"] >= 30
    assert min(found["mlp_output_varying_share"]) > 0.2
    by_hand = demo.logits(demo.encode_image(images), demo.zero_shot_head(CLASSNAMES, TEMPLATES)).argmax(1)
    assert found["top1"] == pytest.approx(100 * np.mean(by_hand.numpy() == labels.numpy()), abs=0.01)


def test_mean_ablation_equals_surgery(demo: FrozenCLIP) -> None:
    """`evaluate`'s ablation against MLPs whose weights are zero and whose bias is the mean."""
    drawn = [render(78, i) for i in range(96)]
    images = torch.stack([demo.preprocess(r.image) for r in drawn])
    labels = torch.tensor([r.label for r in drawn])
    found = evaluate(demo, images, labels, CLASSNAMES, TEMPLATES, HELD_OUT, batch_size=40)
    acts = demo.capture(images)
    np.testing.assert_allclose(found["mlp_output_rms"], acts.y.pow(2).mean((1, 2)).sqrt(), atol=1e-4)
    other = FrozenCLIP(pretrained="demo")
    blocks: list[Any] = list(other.blocks)
    for layer, block in enumerate(blocks):
        block.mlp.c_proj.weight.data.zero_()
        block.mlp.c_proj.bias.data.copy_(acts.y[layer].mean(0))
    right = other.logits(other.encode_image(images), other.zero_shot_head(CLASSNAMES, TEMPLATES)).argmax(1) == labels
    # a render on the border between two classes may fall to the other side
    assert found["top1_mean_ablated"] == pytest.approx(100 * right.float().mean().item(), abs=100 / 96 + 0.01)


def test_the_name_is_ignored_and_the_files_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert FrozenCLIP("ViT-B-32", pretrained="demo").name.startswith("demo")
    monkeypatch.setattr("clt_lightning.backbone.clip.source.DEMO_CHECKPOINT", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"none\.safetensors.*clip\.demo\.train"):
        FrozenCLIP(pretrained="demo")


def test_the_script_trains_writes_and_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--steps", "3", "--n-train", "64", "--n-eval", "64", "--batch-size", "16", "--workers", "1"]
    hashes = []
    for run in ("a", "b"):
        train.main(["--output", str(tmp_path / run), *size])
        clip = FrozenCLIP("demo", str(tmp_path / run / DEMO_CHECKPOINT.name))
        hashes.append(clip.describe()["weights_sha256"])
    assert hashes[0] == hashes[1]
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["evaluation"]["images"] == 64
    assert metrics["options"]["steps"] == 3
    assert "step 3 of 3" in capsys.readouterr().out


def test_true_captions_of_others_are_no_negatives() -> None:
    """Two pairs of the same meaning: with the mask each has one candidate, so the loss is zero."""

    class Same(torch.nn.Module):
        logit_scale = torch.tensor(0.0)

        def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
            return torch.eye(3)[torch.tensor([0, 0])]

        encode_text = encode_image

    images = tokens = torch.zeros(2, 1)
    everything, own = torch.ones(2, 2, dtype=torch.bool), torch.eye(2, dtype=torch.bool)
    assert train.contrastive_loss(Same(), images, tokens, everything).item() == 0
    assert train.contrastive_loss(Same(), images, tokens, own).item() == pytest.approx(np.log(2))


def test_training_never_draws_the_held_out_classes() -> None:
    pairs = train.draw_pairs(120, seed=9, workers=1)
    held_out = {CLASSNAMES[label] for label in HELD_OUT}
    named = {pairs.sentences[row[0]].removeprefix("a ") for row in pairs.captions.tolist()}
    assert len(named) == 56
    assert not named & held_out
    # what is told of a picture is told in every kind of caption, and only the two that name the class mean the same
    assert (pairs.meanings[:, 0] == pairs.meanings[:, 1]).all()
    assert all(len(set(row)) == 4 for row in pairs.meanings.tolist())

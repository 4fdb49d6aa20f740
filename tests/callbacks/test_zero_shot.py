"""Accuracies equal those counted by hand over the whole split at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.callbacks import ZeroShot
from clt_lightning.callbacks.zero_shot import parse_window
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.module import CLTModule

from .world import CLASSES, LAYERS, Made, module, trainer


@pytest.fixture
def model() -> CLTModule:
    """A module whose transcoder does something: random decoders, made means."""
    made = module()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.transcoder.W_dec:
            weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
        made.transcoder.y_mean.copy_(torch.randn(LAYERS, made.clip.d_model, generator=generator))
        made.transcoder.normalized.fill_(True)
    return made


def right(model: CLTModule, embeddings: Tensor, data: Made) -> float:
    labels = data.everything()[1]
    assert data.templates is not None
    head = model.clip.zero_shot_head(CLASSES, data.templates)
    predicted = (embeddings @ head).argmax(1)
    return float((predicted == labels)[labels >= 0].double().mean())


def test_equals_counting_by_hand(tmp_path: Path, model: CLTModule) -> None:
    data = Made(n=61, batch_size=9)
    callback = ZeroShot(["0-2", "1-", "1"], ["all", "cls", "patch"], include_mean_ablation=True)
    (metrics,) = trainer(tmp_path, callback).validate(model, datamodule=data, verbose=False)
    images = data.everything()[0]
    original = model.clip.encode_image(images)
    assert metrics["val/zero_shot/original"] == pytest.approx(right(model, original, data))
    assert data.templates is not None
    head = model.clip.zero_shot_head(CLASSES, data.templates)
    p = (100 * original.double() @ head.double()).log_softmax(1)
    seen = set()
    for first, last in ((0, 2), (1, 2), (1, 1)):
        for tokens in ("all", "cls", "patch"):
            with replaced(model.clip, model.transcoder, layers=range(first, last + 1), tokens=tokens):
                e = model.clip.encode_image(images)
            accuracy = metrics[f"val/zero_shot/replaced/{first}-{last}/{tokens}"]
            assert accuracy == pytest.approx(right(model, e, data))
            q = (100 * e.double() @ head.double()).log_softmax(1)
            kl = float((p.exp() * (p - q)).sum(1).mean())
            assert metrics[f"val/zero_shot/kl/{first}-{last}/{tokens}"] == pytest.approx(kl, rel=1e-4)
            assert kl > 0
            seen.add(accuracy)
    assert len(seen) > 1  # the windows are not all the same thing
    handles = [
        block.mlp.register_forward_hook(lambda m, i, out, layer=layer: model.transcoder.y_mean[layer].expand_as(out))
        for layer, block in enumerate(model.clip.model.visual.transformer.resblocks)
    ]
    ablated = model.clip.encode_image(images)
    for handle in handles:
        handle.remove()
    assert metrics["val/zero_shot/mean_ablated"] == pytest.approx(right(model, ablated, data))
    assert len(metrics) == 1 + 9 + 9 + 1


def test_default_is_everything_replaced_and_test_has_its_own_tags(tmp_path: Path, model: CLTModule) -> None:
    (metrics,) = trainer(tmp_path, ZeroShot()).test(model, datamodule=Made(), verbose=False)
    full = f"0-{LAYERS - 1}/all"
    assert set(metrics) == {f"test/zero_shot/{tag}" for tag in ("original", f"replaced/{full}", f"kl/{full}")}


def test_the_head_is_made_once_and_again_for_other_classes(
    tmp_path: Path, model: CLTModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []
    original = type(model.clip).zero_shot_head

    def counting(self: Any, classnames: list[str], *args: Any, **kwargs: Any) -> Tensor:
        made.append(classnames)
        return original(self, classnames, *args, **kwargs)

    monkeypatch.setattr(type(model.clip), "zero_shot_head", counting)
    data, runner = Made(), trainer(tmp_path, ZeroShot(), val_check_interval=2, num_sanity_val_steps=1)
    runner.fit(model, datamodule=data)
    assert made == [CLASSES]
    data.classnames = [*CLASSES[:-1], "zebra"]
    runner.validate(model, datamodule=data, verbose=False)
    assert [names[-1] for names in made] == ["chair", "zebra"]


def test_data_without_classes_is_passed_over_with_a_line(
    tmp_path: Path, model: CLTModule, caplog: pytest.LogCaptureFixture
) -> None:
    runner = trainer(tmp_path, ZeroShot())
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        for _ in range(2):
            (metrics,) = runner.validate(model, datamodule=Made(labelled=False), verbose=False)
    assert metrics == {}
    assert [r.getMessage() for r in caplog.records if "zero-shot" in r.getMessage()] == [
        "zero-shot accuracy is not measured: the data has no class names"
    ]


def test_no_mean_ablation_with_means_that_nobody_estimated(
    tmp_path: Path, model: CLTModule, caplog: pytest.LogCaptureFixture
) -> None:
    model.transcoder.normalized.fill_(False)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        runner = trainer(tmp_path, ZeroShot(include_mean_ablation=True))
        (metrics,) = runner.validate(model, datamodule=Made(), verbose=False)
    assert "val/zero_shot/mean_ablated" not in metrics
    assert "mean ablation is not measured" in caplog.text


@pytest.mark.parametrize(("text", "window"), [("3-11", (3, 11)), ("0-", (0, 11)), ("7", (7, 7)), (" 2 - 4 ", (2, 4))])
def test_windows(text: str, window: tuple[int, int]) -> None:
    assert parse_window(text, 12) == window


@pytest.mark.parametrize("text", ["", "-3", "a-b", "5-3", "3-12", "12", "3 4", "1-2-3"])
def test_windows_that_do_not_exist(text: str) -> None:
    with pytest.raises(UserError, match=r"zero_shot\.windows: '"):
        parse_window(text, 12)


def test_a_window_beyond_the_model_stops_before_training(tmp_path: Path, model: CLTModule) -> None:
    with pytest.raises(UserError, match=r"zero_shot\.windows: '0-11' does not fit .* layers 0\.\.2.*null for all"):
        trainer(tmp_path, ZeroShot(["0-11"])).fit(model, datamodule=Made())


def test_strings_in_the_place_of_lists() -> None:
    with pytest.raises(UserError, match=r"must be a list, such as \['0-11'\]"):
        ZeroShot("0-11")
    with pytest.raises(UserError, match=r"zero_shot\.token_sets must be a list"):
        ZeroShot(token_sets="all")


def test_no_block_is_run_that_is_known(tmp_path: Path, model: CLTModule) -> None:
    """A window starts behind its first MLP, from the stream of the untouched forward, and runs beside the others."""
    seen: list[list[int]] = [[] for _ in range(LAYERS)]
    one = model.clip.n_positions * model.clip.d_model
    for layer, block in enumerate(model.clip.blocks):
        block.register_forward_hook(lambda m, i, out, layer=layer: seen[layer].append(out.numel() // one))
    trainer(tmp_path, ZeroShot(["0-2", "1-", "2"])).validate(model, datamodule=Made(n=8, batch_size=8), verbose=False)
    assert seen == [[8], [8, 8], [8, 16]]  # images: of the untouched model, then of the windows that have begun

"""Pictures, the arrangement of scalars and hyper-parameters in TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from clt_lightning.callbacks import Board, Figures, Reconstruction
from clt_lightning.callbacks.board import result_tags
from clt_lightning.core.errors import UserError
from clt_lightning.report.figures.top_images import TopImages
from clt_lightning.transcoder import Codes

from .world import LAYERS, Made, module, trainer


def events(folder: str | None) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


def test_pictures_at_every_second_validation(tmp_path: Path) -> None:
    callbacks = Reconstruction(), Figures(every=2, images=16, features=2, top=3)
    runner = trainer(tmp_path, *callbacks, max_steps=6, val_check_interval=2)
    runner.fit(module(), datamodule=Made())
    log = events(runner.log_dir)
    names = ["figures/reconstruction"]
    names += [
        f"figures/contributions/{tokens}/{kind}" for tokens in ("cls", "all") for kind in ("uncentred", "centred")
    ]
    names += [f"figures/features/layer_{layer:02d}" for layer in range(LAYERS)]
    assert sorted(log.Tags()["images"]) == sorted(names)
    for name in names:
        drawn = log.Images(name)
        assert [event.step for event in drawn] == [2, 6]
        pixels = np.asarray(Image.open(io.BytesIO(drawn[0].encoded_image_string)).convert("L"), float)
        assert pixels.std() > 5  # something is drawn


def test_nothing_is_drawn_where_it_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        runner = trainer(tmp_path, Figures(), Board(), logger=False, max_steps=2, val_check_interval=2)
        runner.fit(module(), datamodule=Made())
    assert "figures are not drawn" in caplog.text
    runner = trainer(tmp_path, Figures(every=0), max_steps=2, val_check_interval=2)
    runner.fit(module(), datamodule=Made())
    assert events(runner.log_dir).Tags()["images"] == []


def test_a_resumed_run_shows_the_same_features(tmp_path: Path) -> None:
    """And counts its validations on: after one that was drawn, the next of every second one is not."""

    def shown(figures: Figures, seed: int, name: str) -> tuple[dict[str, Any], list[str]]:
        runner = trainer(tmp_path / name, figures, max_steps=2, val_check_interval=2)
        runner.fit(module(seed=seed), datamodule=Made())
        return figures.state_dict(), events(runner.log_dir).Tags()["images"]

    first, drawn = shown(Figures(every=2), 0, "first")
    fresh, _ = shown(Figures(every=2), 1, "fresh")
    assert first["chosen"] != fresh["chosen"]  # of another transcoder, others fire
    resumed = Figures(every=2)
    resumed.load_state_dict(first)
    again, drawn_again = shown(resumed, 1, "resumed")
    assert again["chosen"] == first["chosen"]
    assert drawn
    assert not drawn_again
    after, drawn_after = shown(resumed, 1, "after")
    assert after["chosen"] == first["chosen"]
    assert drawn_after == drawn


@pytest.mark.parametrize("options", [{"every": -1}, {"images": 0}, {"features": -1}, {"top": 0}])
def test_wrong_numbers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"figures.{next(iter(options))} must be"):
        Figures(**options)  # type: ignore[arg-type]


def test_the_strongest_images_are_kept_with_their_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2, 60, 8, generator=generator) * (torch.rand(2, 60, 8, generator=generator) < 0.3)
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(12)]  # 5 positions per image
    top = TopImages(layer=1, features=[3, 6], k=4)
    for start in (0, 5, 10):
        stop = min(start + 5, 12)
        top.update(Codes.from_dense(dense[:, start * 5 : stop * 5]), images[start:stop])
    for feature, found in zip([3, 6], top.found, strict=True):
        maps = dense[1, :, feature].view(12, 5)
        order = maps.abs().amax(1).argsort(descending=True)[:4]
        assert [int(pixels[0, 0, 0]) for _, pixels, _ in found] == order.tolist()
        for image, (value, _, codes) in zip(order, found, strict=True):
            assert value == pytest.approx(float(maps[image].abs().max()))
            np.testing.assert_array_equal(codes, maps[image].numpy())


def test_scalars_are_arranged_and_runs_compare(tmp_path: Path) -> None:
    runner = trainer(tmp_path, Reconstruction(), Board(), max_steps=2, val_check_interval=2)
    runner.fit(module(), datamodule=Made())
    log = events(runner.log_dir)
    layout = layout_pb2.Layout()
    layout.ParseFromString(log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["training", "reconstruction", "replacement"]

    plugin = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert start["transcoder/n_features"].number_value == 48
    assert start["clip/name"].string_value == "tiny-for-callbacks"
    assert start["trainer/max_steps"].number_value == 2
    plugin = log.SummaryMetadata("_hparams_/experiment").plugin_data.content
    infos = plugin_data_pb2.HParamsPluginData.FromString(plugin).experiment.metric_infos
    assert [info.name.tag for info in infos] == result_tags(LAYERS)
    # what it compares by is what was measured, once
    measured = log.Scalars("val/fvu/all")
    assert len(measured) == 1
    assert measured[0].value == pytest.approx(float(runner.callback_metrics["val/fvu/all"]), rel=1e-6)

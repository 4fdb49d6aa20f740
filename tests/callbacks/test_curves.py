"""Curves between validations: what they measure, what they cost the run, and how many there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.callbacks import Board, Checkpoints, Curves, Figures, Reconstruction, Throughput, ZeroShot
from clt_lightning.callbacks.place import RunLogger
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.training.losses import CascadeConfig
from clt_lightning.training.module import CLTModule
from clt_lightning.training.settings import LossConfig, TranscoderConfig
from clt_lightning.transcoder import BatchTopK, TopK
from tests.runs.world import scalars, write_config

from .world import NAME, Made, module, trainer


def everything(folder: str | Path | None) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0}).Reload()


def test_points_between_validations_are_those_of_a_validation(tmp_path: Path) -> None:
    """Of the same weights on the same images; and validations follow where they did."""
    callbacks = (ZeroShot(), Reconstruction(), Throughput(), Checkpoints(), Curves(2, images=26))
    runner = trainer(tmp_path, *callbacks, max_steps=7, val_check_interval=4)
    runner.fit(module(), datamodule=Made())
    found = scalars(Path(str(runner.log_dir)))
    # validations after steps 4 and 7 (Lightning's labels: 3 and 7), points after 2 and 6
    assert [step for step, _ in found["val/fvu/all"]] == [1, 3, 5, 7]
    assert [step for step, _ in found["val/zero_shot/original"]] == [1, 3, 5, 7]
    assert [step for step, _ in found["val/dead/all"]] == [3, 7]
    other = tmp_path / "other"
    runner = trainer(other, ZeroShot(), Reconstruction(), Checkpoints(), max_steps=7, val_check_interval=2)
    runner.fit(module(), datamodule=Made())
    expected = scalars(Path(str(runner.log_dir)))
    for tag in ("val/fvu/cls", "val/l0/all", "val/share/features", "val/zero_shot/replaced/0-2/all"):
        assert dict(found[tag])[1] == dict(expected[tag])[1], tag
        assert dict(found[tag])[7] == dict(expected[tag])[7], tag


def test_they_leave_no_trace_in_the_run(tmp_path: Path) -> None:
    def weights(*more: Any) -> dict[str, torch.Tensor]:
        model = CLTModule(FrozenCLIP(NAME, None), TranscoderConfig(48, BatchTopK(4)), LossConfig(), seed=0)
        runner = trainer(tmp_path, Reconstruction(), *more, max_steps=6, limit_val_batches=1)
        runner.fit(model, datamodule=Made())
        return model.transcoder.state_dict()

    plain, measured = weights(), weights(Curves(1, images=8))
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


def test_nothing_to_measure_or_nowhere_to_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ({"limit_val_batches": 0}, {"logger": False}, {"fast_dev_run": 3}):
        trainer(tmp_path, Reconstruction(), Curves(1, images=8), **options).fit(module(), datamodule=Made())
    assert "step 1:" not in capsys.readouterr().out
    loader, images = Made().train_dataloader(), Made().val_dataloader()
    trainer(tmp_path, Reconstruction(), Curves(1, images=8)).fit(module(), loader, images)
    assert "step 1: FVU" in capsys.readouterr().out
    with pytest.raises(UserError, match="every_n_steps must be 0 or more"):
        Curves(-1)


def deep(layers: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CLTModule:
    """A model of many layers."""
    import open_clip

    vision = {"image_size": 24, "layers": layers, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / "deep.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    loss = LossConfig(cascade=CascadeConfig(images=2, start=0.5, warmup=0.5))
    return CLTModule(FrozenCLIP("deep", None), TranscoderConfig(48, TopK(4)), loss, seed=0)


@pytest.mark.parametrize("per_layer", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_vit_b_has_at_most_sixty_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_layer: bool) -> None:
    windows = ZeroShot(["0-", "3-", "7-", "10-"], include_mean_ablation=True)
    figures = Figures(images=8, top=2, per_layer=per_layer)
    callbacks = (Reconstruction(), windows, Throughput(), Curves(2, images=8), figures, Board())
    model = deep(12, tmp_path, monkeypatch)
    logger = RunLogger(tmp_path / "run", tmp_path / "run" / "version_0", per_layer=per_layer)
    options: dict[str, Any] = {"max_steps": 4, "val_check_interval": 4, "log_every_n_steps": 1, "logger": logger}
    runner = trainer(tmp_path, *callbacks, **options)
    runner.fit(model, datamodule=Made())
    log = everything(runner.log_dir)
    tags = [tag for kind in ("scalars", "images", "histograms", "tensors") for tag in log.Tags()[kind]]
    assert per_layer or len(tags) <= 60, tags
    assert ("val/fvu/patch/layer_11" in tags) is per_layer
    assert ("val/histogram/log2_code/layer_07" in tags) is per_layer
    assert {"train/loss", "val/fvu/all", "val/share/features", "val/share/skip", "train/cascade"} <= set(tags)
    assert sum(tag.startswith("figures/features/") for tag in tags) == (12 if per_layer else 4)
    # callbacks, tables and records have all of them either way
    assert "val/dead/all/layer_11" in runner.callback_metrics


def test_where_the_cascade_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = deep(2, tmp_path, monkeypatch)
    runner = trainer(tmp_path, Board(), max_steps=8, log_every_n_steps=1, limit_val_batches=0)
    runner.fit(model, datamodule=Made())
    found = dict(scalars(Path(str(runner.log_dir)))["train/cascade"])
    assert [found[step] for step in range(8)] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1]
    (mark,) = everything(runner.log_dir).Tensors("marks/cascade/text_summary")
    assert mark.step == 4
    said = mark.tensor_proto.string_val[0].decode()
    assert said == "the cascade's terms join the loss at step 4, in full from step 8 on"
    assert capsys.readouterr().out.count(said) == 1


def test_histograms_of_frequencies_and_codes(tmp_path: Path) -> None:
    model = module(k=4)
    runner = trainer(tmp_path, Figures(images=26, features=0), max_steps=2, val_check_interval=2)
    runner.fit(model, datamodule=Made())
    log = everything(runner.log_dir)
    acts = model.clip.capture(Made().everything()[0])
    dense = model.transcoder.eval()(acts.x).codes.dense().detach()
    frequency = (dense != 0).double().mean(1)
    (drawn,) = log.Histograms("val/histogram/log10_frequency")
    alive = frequency[frequency > 0].log10()
    assert drawn.step == 2
    assert drawn.histogram_value.num == alive.numel()
    assert drawn.histogram_value.sum == pytest.approx(float(alive.sum()), rel=1e-5)
    (drawn,) = log.Histograms("val/histogram/log2_code")
    value, sizes = drawn.histogram_value, dense[dense != 0].double().abs().log2()
    assert value.num == sizes.numel()
    assert value.sum / value.num == pytest.approx(float(sizes.mean()), abs=0.13)  # bins of a quarter of an octave
    assert value.min <= float(sizes.min()) < float(sizes.max()) <= value.max


def hparams(folder: str | Path | None) -> dict[str, Any]:
    plugin = everything(folder).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(plugin).session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in found.items()}


def test_hparams_name_what_is_there(tmp_path: Path) -> None:
    """Not what the settings say of an architecture that `demo` overrules."""
    loss = LossConfig(cascade=CascadeConfig(stream=0.25, images=2))
    for name, clip in (("demo", FrozenCLIP(pretrained="demo")), ("random", FrozenCLIP(NAME, None))):
        model = CLTModule(clip, TranscoderConfig(48, TopK(3), topology="per_layer"), loss, seed=0)
        runner = trainer(tmp_path / name, Board(), max_steps=1, limit_train_batches=0, limit_val_batches=0)
        runner.fit(model, datamodule=Made())
        found = hparams(runner.log_dir)
        assert found["clip/name"] == model.clip.name
        assert (found["clip/name"] == "ViT-B-32-quickgelu") is False
        assert found["clip/weights"] == ("demo" if name == "demo" else "random weights")
        assert found["clip/layers"] == model.clip.n_layers
        assert found["backbone"].startswith(model.clip.name)
        assert found["transcoder/topology"] == "per_layer"
        assert found["transcoder/activation/init_args/k"] == 3
        assert found["transcoder"].startswith("per_layer, ")
        assert found["loss"] == "reconstruction + auxk 0.03125 + cascade stream 0.25 + cascade embedding 1"
        assert found["loss/cascade/stream"] == 0.25
        assert "loss/l1/coefficient" not in found


def test_an_evaluation_leaves_the_trainings_events_alone(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    main(["fit", "--config", str(config), "--trainer.max_steps=5"])
    run = tmp_path / "runs" / "run" / "version_0"
    before = {path: path.read_bytes() for path in run.glob("events.*")}
    assert len(before) == 1
    for command in ("test", "validate", "predict"):
        main([command, "--run", str(run)])
        assert {path: path.read_bytes() for path in run.glob("events.*")} == before, command
    assert not [tag for tag in scalars(run) if tag.startswith("test/")]
    assert "test" in json.loads((run / "results.json").read_text())["metrics"]

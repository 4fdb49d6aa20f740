"""CLTModule as Lightning users write it: objects, any loader, metrics from one call, clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import clt_lightning as cl
from clt_lightning.data import Demo
from clt_lightning.training.batches import as_batch


@pytest.fixture(scope="module")
def clip() -> cl.FrozenCLIP:
    return cl.FrozenCLIP(pretrained="demo")


@pytest.fixture(scope="module")
def split(demo_tars: Path, clip: cl.FrozenCLIP) -> tuple[Tensor, Tensor, list[str], list[str]]:
    data = Demo(root=str(demo_tars), n_train=256, n_test=75, world=5, num_workers=0)
    data.transform = clip.preprocess
    data.prepare_data()
    data.setup("test")
    batches = list(data.eval_dataloader("test"))
    assert data.classnames is not None
    images, labels = (torch.cat([batch[name] for batch in batches]) for name in ("image", "label"))
    return images, labels, list(data.classnames), list(data.templates or [])


def transcoder(clip: cl.FrozenCLIP, **options: Any) -> cl.CrossLayerTranscoder:
    form: dict[str, Any] = {"n_features": 64, "activation": cl.TopK(8), "seed": 0} | options
    return cl.CrossLayerTranscoder(n_layers=clip.n_layers, d_model=clip.d_model, **form)


def quiet(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **options
    )


def test_objects_and_a_plain_loader_of_tuples(clip: cl.FrozenCLIP, split: Any, tmp_path: Path) -> None:
    images, labels, _, _ = split
    clt = transcoder(clip)
    before = [W.detach().clone() for W in clt.W_enc]
    loader = DataLoader(TensorDataset(images, labels), batch_size=25)
    module = cl.CLTModule(clip, clt)
    assert module.clip is clip
    assert module.transcoder is clt
    quiet(tmp_path, max_epochs=2, logger=False, enable_checkpointing=False).fit(module, loader)
    assert bool(clt.normalized)
    assert all(not torch.equal(a, b) for a, b in zip(before, clt.W_enc))
    assert module.total_steps == 6  # two epochs of three batches: the schedule ends there
    out = clt(clip.capture(images).x)
    y = clip.capture(images).y
    assert float((y - out.y_hat).square().sum()) < float((y - y.mean(1, keepdim=True)).square().sum())


@pytest.mark.parametrize("kind", ["dicts", "images alone"])
def test_other_loaders(clip: cl.FrozenCLIP, split: Any, tmp_path: Path, kind: str) -> None:
    images, labels, _, _ = split
    pairs = [{"image": i, "label": n} for i, n in zip(images, labels)] if kind == "dicts" else list(images)
    module = cl.CLTModule(clip, transcoder(clip))
    trainer = quiet(tmp_path, max_steps=2, logger=False, enable_checkpointing=False)
    trainer.fit(module, DataLoader(pairs, batch_size=16))  # type: ignore[arg-type]
    assert trainer.global_step == 2


def test_metrics_come_with_one_call(clip: cl.FrozenCLIP, split: Any, tmp_path: Path) -> None:
    images, labels, names, templates = split
    loader = DataLoader(TensorDataset(images, labels), batch_size=25)
    logger = TensorBoardLogger(tmp_path, "mine")
    trainer = quiet(tmp_path, max_steps=3, logger=logger, callbacks=cl.callbacks.default(names, templates))
    module = cl.CLTModule(clip, transcoder(clip))
    trainer.fit(module, loader, loader)
    metrics = trainer.callback_metrics
    head = clip.zero_shot_head(names, templates)
    right = (clip.encode_image(images) @ head).argmax(1) == labels
    assert float(metrics["val/zero_shot/original"]) == pytest.approx(float(right.double().mean()))
    assert "val/fvu/all" in metrics
    folder = tmp_path / "mine" / "version_0"
    assert (folder / "transcoder" / "model.safetensors").is_file()
    again = cl.CrossLayerTranscoder.from_pretrained(folder / "transcoder")
    x = clip.capture(images[:4]).x
    torch.testing.assert_close(again(x).y_hat, module.transcoder.eval()(x).y_hat)


def test_a_checkpoint_of_a_module_made_from_objects_loads(clip: cl.FrozenCLIP, split: Any, tmp_path: Path) -> None:
    images, labels, _, _ = split
    module = cl.CLTModule(clip, transcoder(clip, activation=cl.BatchTopK(6)))
    trainer = quiet(tmp_path, max_steps=2, logger=False)
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=25))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = cl.CLTModule.load_from_checkpoint(tmp_path / "a.ckpt")
    x = clip.capture(images[:4]).x
    torch.testing.assert_close(again.eval().transcoder(x).y_hat, module.eval().transcoder(x).y_hat)


def test_a_mismatch_is_one_clear_message(clip: cl.FrozenCLIP) -> None:
    with pytest.raises(cl.UserError, match=r"5 layers of width 96.*4 of width 96"):
        cl.CLTModule(clip, cl.CrossLayerTranscoder(n_layers=5, d_model=clip.d_model, n_features=8))
    with pytest.raises(cl.UserError, match=r"parallel\.feature"):
        cl.CLTModule(clip, transcoder(clip), parallel=cl.ParallelConfig(2))


def test_a_decay_needs_an_end(clip: cl.FrozenCLIP, split: Any, tmp_path: Path) -> None:
    images, _, _, _ = split
    loader: DataLoader[Tensor] = DataLoader(list(images), batch_size=16)  # type: ignore[arg-type]
    trainer = quiet(tmp_path, max_epochs=-1, max_time={"seconds": 60}, logger=False, enable_checkpointing=False)
    with pytest.raises(cl.UserError, match="needs the length of the run"):
        trainer.fit(cl.CLTModule(clip, transcoder(clip)), loader)


def test_batches() -> None:
    image = torch.zeros(2, 3, 8, 8)
    assert as_batch((image, [1, 2]))["label"].tolist() == [1, 2]
    assert set(as_batch([image])) == {"image"}
    assert set(as_batch({"image": image, "key": ["a", "b"]})) == {"image", "key"}
    for wrong, words in (
        ({"pixel_values": image}, "must hold 'image'.*pixel_values"),
        ((image, image, image), "tuple of 3"),
        ("no batch", "got str"),
        (image.to(torch.uint8), r"torch\.uint8.*clip\.preprocess"),
        (image[0], r"shape \(3, 8, 8\)"),
        ((image, torch.zeros(3)), r"\(2,\), got \(3,\)"),
    ):
        with pytest.raises(cl.UserError, match=words):
            as_batch(wrong)


def test_capture_takes_pictures(clip: cl.FrozenCLIP, demo_tars: Path) -> None:
    from PIL import Image

    pictures = [Image.new(mode, (50, 40), 90) for mode in ("RGB", "L")]
    tensors = torch.stack([clip.preprocess(p.convert("RGB")) for p in pictures])
    expected = clip.capture(tensors)
    torch.testing.assert_close(clip.capture(pictures).x, expected.x)
    torch.testing.assert_close(clip.capture(list(tensors)).x, expected.x)
    torch.testing.assert_close(clip.capture(pictures[0]).x, clip.capture(tensors[:1]).x)
    torch.testing.assert_close(clip.encode_image(tensors[1]), clip.encode_image(tensors[1:]))
    with pytest.raises(cl.UserError, match="no image"):
        clip.capture([])


def test_the_surface_is_listed() -> None:
    names = dir(cl)
    assert {"CLTModule", "FrozenCLIP", "open_run", "callbacks", "LossConfig", "Target", "replaced"} <= set(names)
    for name in names:
        assert getattr(cl, name) is not None


def test_a_modules_settings_are_its_own(clip: cl.FrozenCLIP) -> None:
    first = cl.CLTModule(clip, transcoder(clip))
    first.schedule_config.decay = "none"
    first.loss_config.auxk.coefficient = 7.0
    second = cl.CLTModule(clip, transcoder(clip))
    assert second.schedule_config.decay != "none"
    assert second.loss_config.auxk.coefficient != 7.0

"""What is logged equals NumPy on activations taken with hooks set by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clt_lightning.callbacks import Reconstruction
from clt_lightning.core.errors import UserError
from clt_lightning.training.module import CLTModule

from .world import LAYERS, Made, module, trainer


def by_hand(model: CLTModule, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True outputs, reconstruction and dense codes, `(L, images, positions, ...)`, float64 NumPy."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    handles: list[Any] = []
    for block in model.clip.model.visual.transformer.resblocks:
        handles.append(block.ln_2.register_forward_hook(lambda m, i, out: xs.append(out)))
        handles.append(block.mlp.register_forward_hook(lambda m, i, out: ys.append(out)))
    with torch.no_grad():
        model.clip.model.encode_image(images)
        for handle in handles:
            handle.remove()
        x = torch.stack(xs)
        out = model.transcoder(x.flatten(1, 2))
    shape = x.shape[:3]
    dense = out.codes.dense().unflatten(1, shape[1:])
    return tuple(t.double().numpy() for t in (torch.stack(ys), out.y_hat.unflatten(1, shape[1:]), dense))  # type: ignore


def expected(y: np.ndarray, y_hat: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    y, y_hat, codes = (a.reshape(len(a), -1, a.shape[-1]) for a in (y, y_hat, codes))
    centred = y - y.mean(1, keepdims=True)
    norms = np.linalg.norm(y, axis=-1) * np.linalg.norm(y_hat, axis=-1)
    return {
        "fvu": ((y - y_hat) ** 2).sum((1, 2)) / (centred**2).sum((1, 2)),
        "cosine": ((y * y_hat).sum(-1) / norms).mean(1),
        "l0": (codes != 0).sum(-1).mean(1),
        "dead": (codes == 0).all(1).mean(1),
    }


def check(metrics: dict[str, Any], stage: str, model: CLTModule, images: Tensor) -> None:
    arrays = by_hand(model, images)
    for name, part in {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}.items():
        for kind, layers in expected(*(a[:, :, part] for a in arrays)).items():
            logged = [float(metrics[f"{stage}/{kind}/{name}/layer_{layer:02d}"]) for layer in range(LAYERS)]
            np.testing.assert_allclose(logged, layers, rtol=1e-5, err_msg=f"{kind} {name}")
            np.testing.assert_allclose(float(metrics[f"{stage}/{kind}/{name}"]), layers.mean(), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 26])
def test_validation_equals_numpy(tmp_path: Path, batch_size: int) -> None:
    model, data = module(), Made(batch_size=batch_size)
    fitter = trainer(tmp_path, Reconstruction(), limit_val_batches=0)
    fitter.fit(model, datamodule=data)
    runner = trainer(tmp_path, Reconstruction())
    (metrics,) = runner.validate(model, datamodule=data, verbose=False)
    check(dict(metrics), "val", model, data.everything()[0])
    assert metrics["val/fvu/all"] < 1.5
    (metrics,) = runner.test(model, datamodule=data, verbose=False)
    check(dict(metrics), "test", model, data.everything()[0])


def test_the_end_of_fit_and_a_later_validation_agree(tmp_path: Path) -> None:
    model, data = module(), Made()
    fitter = trainer(tmp_path, Reconstruction(), num_sanity_val_steps=2, val_check_interval=2)
    fitter.fit(model, datamodule=data)
    at_end = {k: float(v) for k, v in fitter.callback_metrics.items() if k.startswith("val/")}
    check(at_end, "val", model, data.everything()[0])
    (later,) = trainer(tmp_path, Reconstruction()).validate(model, datamodule=data, verbose=False)
    assert later == at_end


def test_only_the_sets_asked_for(tmp_path: Path) -> None:
    (metrics,) = trainer(tmp_path, Reconstruction(["patch"])).validate(module(), datamodule=Made(), verbose=False)
    assert {key.split("/")[2] for key in metrics if not key.startswith("val/share/")} == {"patch"}
    assert len(metrics) == 4 * (1 + LAYERS) + 2  # shares of features and skip


def test_unknown_token_set() -> None:
    with pytest.raises(UserError, match=r"reconstruction\.token_sets"):
        Reconstruction(["patches"])


@pytest.mark.parametrize("skip", [False, True])
def test_shares_of_features_and_skip(tmp_path: Path, skip: bool) -> None:
    model = module(skip=skip)
    (metrics,) = trainer(tmp_path, Reconstruction()).validate(model, datamodule=Made(), verbose=False)
    share = metrics["val/share/features"]
    assert share + metrics["val/share/skip"] == pytest.approx(1)
    if not skip:
        assert share == 1
        return
    acts = model.clip.capture(Made().everything()[0])
    out = model.transcoder(acts.x)
    y, f = out.y_hat.double(), (out.y_hat - model.transcoder.linear_part(acts.x)).double()
    y, f = y - y.mean(1, keepdim=True), f - f.mean(1, keepdim=True)
    expected = (y * f).sum((1, 2)) / y.square().sum((1, 2))
    assert share == pytest.approx(float(expected.mean()), rel=1e-4)
    assert abs(share - 1) > 0.01
    assert metrics["val/share/features/all/layer_01"] == pytest.approx(float(expected[1]), rel=1e-4)

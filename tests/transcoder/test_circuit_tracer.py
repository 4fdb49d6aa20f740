"""The files of circuit-tracer's layout compute what the transcoder computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from clt_lightning.transcoder import BatchTopK, JumpReLU, ReLU
from clt_lightning.transcoder.activations import Activation
from clt_lightning.transcoder.files.circuit_tracer import save_circuit_tracer
from tests.transcoder.conftest import MakeCLT


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(0.4), BatchTopK(5)], ids=lambda a: type(a).__name__)
def test_files_give_the_same_reconstruction(make_clt: MakeCLT, tmp_path: Path, activation: Activation) -> None:
    clt = make_clt(activation=activation)
    x = torch.randn(3, 30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # BatchTopK stores a threshold: of other data, since on its own it equals a pre-activation, and rounding decides
    clt(torch.randn(3, 40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    clt.eval()
    folder = save_circuit_tracer(clt, tmp_path / "out", {"clip": {"name": "ViT-B-32-quickgelu"}})
    assert yaml.safe_load((folder / "config.yaml").read_text())["model_name"] == "ViT-B-32-quickgelu"
    encoders = [load_file(folder / f"W_enc_{layer}.safetensors") for layer in range(3)]
    decoders = [load_file(folder / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"] for layer in range(3)]
    y_hat = torch.stack([part[f"b_dec_{layer}"] for layer, part in enumerate(encoders)])[:, None].repeat(1, 30, 1)
    for layer, part in enumerate(encoders):
        pre = x[layer] @ part[f"W_enc_{layer}"].T + part[f"b_enc_{layer}"]
        threshold = part.get(f"threshold_{layer}", torch.zeros(20, dtype=torch.float64))
        codes = pre * (pre > threshold)
        assert (codes > 0).any()
        assert (codes == 0).any()
        for t in range(decoders[layer].shape[1]):
            y_hat[layer + t] += codes @ decoders[layer][:, t]
    torch.testing.assert_close(y_hat, clt(x).y_hat.detach())

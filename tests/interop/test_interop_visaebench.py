"""The adapter is measured by ViSAEBench itself (`make test-interop`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clt_lightning.transcoder import CrossLayerTranscoder, TopK
from tests.interop.test_interop import REPOSITORY, python_with

pytestmark = pytest.mark.interop

IMAGES, PATCHES, WIDTH, FEATURES = 240, 9, 24, 64


def test_its_metrics_are_ours(tmp_path: Path) -> None:
    python = python_with("visaebench")
    clt = CrossLayerTranscoder(2, WIDTH, FEATURES, TopK(6), topology="sae", seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    labels, others = (torch.randint(0, 4, (IMAGES,), generator=generator) for _ in range(2))
    with torch.no_grad():
        clt.b_dec.normal_(0, 0.3, generator=generator)
        clt.y_scale.copy_(torch.tensor([0.5, 2.0]))
        clt.x_scale.copy_(torch.tensor([2.0, 0.5]))
        for W in clt.W_dec:
            W.normal_(0, 0.2, generator=generator)
    # an image's class is one feature's own direction, in one of its patches
    x = torch.randn(IMAGES, PATCHES, WIDTH, generator=generator)
    x[:, 4] += 12 * torch.nn.functional.normalize(clt.W_enc[1][labels].detach(), dim=1)
    clt.save_pretrained(tmp_path / "transcoder")
    save_file({"x": x, "labels": labels, "others": others}, tmp_path / "given.safetensors")

    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [python, str(Path(__file__).with_name("visae.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)

    tokens = x.flatten(0, 1)
    with torch.no_grad():
        out = clt(tokens.expand(2, -1, -1))
        codes, rest = out.codes.dense()[1], (tokens - out.y_hat[1]).double()

    def spread(values: torch.Tensor) -> float:
        """As the package has it: of sums over all dimensions of a token."""
        return float(values.square().sum(1).mean() - values.sum(1).mean().square())

    assert found["protocol"]
    assert found["fvu"] == pytest.approx(spread(rest) / spread(tokens.double()), rel=1e-5)
    assert found["l0"] == pytest.approx(float((codes != 0).sum(1).double().mean()))
    assert found["dead_features"] == int((codes == 0).all(0).sum())
    assert found["labels"] > 0.95  # four features tell the class
    assert found["others"] < 0.5  # and nothing tells labels that were drawn

"""Every mapping's numbers against the real circuit-tracer and SAELens (`make test-interop`).

They pin other versions of what this package needs, so they live in an environment of their own: .venv-interop, or the
one whose Python CLT_INTEROP_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clt_lightning.transcoder import AbsTopK, BatchTopK, CrossLayerTranscoder, JumpReLU, ReLU, TopK
from clt_lightning.transcoder.activations import Activation
from clt_lightning.transcoder.files import export

pytestmark = pytest.mark.interop

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("circuit_tracer", "sae_lens")
LAYERS, WIDTH, FEATURES, TOKENS = 4, 48, 256, 200


def python_with(package: str) -> str:
    """The Python that has a package; skips with the reason where there is none."""
    place = os.environ.get("CLT_INTEROP_PYTHON") or str(REPOSITORY / ".venv-interop" / "bin" / "python")
    if not Path(place).exists():
        pytest.skip(f"no {place}: make test-interop makes it, from PyPI (or set CLT_INTEROP_PYTHON)")
    tried = subprocess.run([place, "-c", f"import {package}"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"{place} cannot import {package}: {tried.stderr.strip().splitlines()[-1]}")
    return place


def write_case(place: Path, form: str, topology: str, skip: bool, activation: Activation) -> None:
    clt = CrossLayerTranscoder(LAYERS, WIDTH, FEATURES, activation, topology, skip, seed=3)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in clt.named_parameters():
            if "threshold" not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        clt.x_scale.copy_(2.0 ** torch.arange(-1, LAYERS - 1))
        clt.y_scale.copy_(2.0 ** -torch.arange(-1.0, LAYERS - 1))
    clt(torch.randn(LAYERS, TOKENS, WIDTH, generator=generator))  # BatchTopK's threshold
    x = torch.randn(LAYERS, TOKENS, WIDTH, generator=generator)
    clt = clt.eval()
    with torch.no_grad():
        expected = {"x": x, "codes": clt.encode(x).dense(), "y_hat": clt(x).y_hat}
    export(clt, place / "export", form, {"clip": {"name": "ViT-B-32"}})
    save_file(expected, place / "expected.safetensors")
    (place / "case.json").write_text(json.dumps({"format": form, "topology": topology}))


def compare(folder: Path, package: str) -> dict[str, dict[str, float]]:
    command = [python_with(package), str(Path(__file__).with_name("reader.py")), str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


def check(found: dict[str, dict[str, float]], cases: int) -> None:
    assert len(found) == cases
    for row in found.values():
        assert row["supports"] == 0, row
        assert row["codes"] <= 1e-6, row
        assert row["y"] <= 1e-6, row


def test_circuit_tracer(tmp_path: Path) -> None:
    python_with(PACKAGES[0])
    cases = [
        (topology, skip, activation)
        for topology in ("cross_layer", "per_layer")
        for skip in (False, True)
        for activation in (ReLU(), JumpReLU(0.5), BatchTopK(12))
    ]
    for topology, skip, activation in cases:
        name = f"{topology}-{type(activation).__name__}-{skip}"
        write_case(tmp_path / name, "circuit-tracer", topology, skip, activation)
    found = compare(tmp_path, PACKAGES[0])
    print("\n".join(map(str, found.values())))
    check(found, len(cases))


def test_sae_lens(tmp_path: Path) -> None:
    python_with(PACKAGES[1])
    thresholds: list[Activation] = [ReLU(), JumpReLU(0.5), BatchTopK(12)]
    cases = [("per_layer", skip, activation) for skip in (False, True) for activation in thresholds]
    cases += [("sae", False, activation) for activation in (*thresholds, TopK(12), AbsTopK(12))]
    for topology, skip, activation in cases:
        name = f"{topology}-{type(activation).__name__}-{skip}"
        write_case(tmp_path / name, "sae-lens", topology, skip, activation)
    found = compare(tmp_path, PACKAGES[1])
    print("\n".join(map(str, found.values())))
    check(found, len(cases))

"""Reads exports with circuit-tracer and SAELens themselves; run by a Python that has them, without this package.

    python reader.py FOLDER

FOLDER/<case>/ holds `export/`, `case.json` (format, topology) and `expected.safetensors` (x, codes, y_hat). Prints a
line of JSON per case with the differences, as shares of what is expected (root mean squares).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def circuit_tracer_clt(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import yaml
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    config = yaml.safe_load((folder / "config.yaml").read_text())
    names = {key: config[key] for key in ("feature_input_hook", "feature_output_hook", "scan")}
    clt: Any = load_clt(str(folder), **names, device=torch.device("cpu"), dtype=torch.float32)
    skips = folder / "W_skip.safetensors"
    if skips.exists():  # the lines of docs/interchange.md
        tensors = load_file(skips)
        stacked = torch.stack([tensors[f"W_skip_{layer}"] for layer in range(clt.n_layers)])
        clt.W_skip = torch.nn.Parameter(stacked.to(clt.dtype))
        clt.skip_connection = True
    assert clt.feature_input_hook == "mlp.hook_in"
    codes = clt.encode(x)
    return codes, clt.decode(codes.to_sparse(), x)  # its forward calls decode without x, which a skip refuses


def circuit_tracer_set(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import yaml
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    config = yaml.safe_load((folder / "config.yaml").read_text())
    paths = {layer: str(folder / name) for layer, name in enumerate(config["transcoders"])}
    names = {key: config[key] for key in ("feature_input_hook", "feature_output_hook", "scan")}
    made: Any = load_transcoder_set(paths, **names, device=torch.device("cpu"), dtype=torch.float32)
    codes = made.encode(x)
    return codes, made.decode(codes, x)


def sae_lens(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from sae_lens import SAE

    saes = [SAE.load_from_disk(folder / f"layer_{layer}") for layer in range(len(x))]
    return torch.stack([s.encode(t) for s, t in zip(saes, x)]), torch.stack([s(t) for s, t in zip(saes, x)])


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def main(folder: Path) -> None:
    torch.set_grad_enabled(False)
    for place in sorted(path.parent for path in folder.glob("*/case.json")):
        case = json.loads((place / "case.json").read_text())
        read = sae_lens
        if case["format"] == "circuit-tracer":
            read = circuit_tracer_clt if case["topology"] == "cross_layer" else circuit_tracer_set
        expected = load_file(place / "expected.safetensors")
        codes, y = read(place / "export", expected["x"])
        codes = codes.to_dense() if codes.is_sparse else codes
        found = {
            "case": place.name,
            "codes": share(codes, expected["codes"]),
            "supports": int(((codes != 0) != (expected["codes"] != 0)).sum()),
            "y": share(y, expected["y_hat"]),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The file layout of circuit-tracer: one encoder and one decoder file a layer."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import sha256, whole_folder
from clt_lightning.transcoder.activations import BatchTopK, JumpReLU, ReLU

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder

SUMS = "SHA256SUMS"
_FILES = re.compile(rf"W_(enc|dec)_\d+\.safetensors|config\.yaml|{SUMS}")


def save_circuit_tracer(clt: CrossLayerTranscoder, folder: str | Path, metadata: dict[str, Any]) -> Path:
    """Writes `W_enc_<l>.safetensors` (W_enc, b_enc, b_dec and, but for ReLU, threshold), `W_dec_<l>.safetensors`,
    config.yaml, and `SHA256SUMS`, with which `sha256sum -c SHA256SUMS` checks the others.

    Args:
        clt: a cross-layer transcoder with ReLU, JumpReLU, or BatchTopK, which in evaluation is a JumpReLU with one
            threshold a layer.
        folder: made if it is not there; an earlier export in it is replaced, whole, when this one is.
        metadata: the backbone's description, for config.yaml.

    Raises:
        UserError: an activation or topology that the layout cannot express, a folder that holds something else, or one
            that cannot be written.
    """
    if not isinstance(clt.activation, (ReLU, JumpReLU, BatchTopK)):
        raise UserError(
            f"circuit-tracer's files know ReLU and thresholds (JumpReLU, BatchTopK), this transcoder has "
            f"{type(clt.activation).__name__}: "
            "export with --format pretrained"
        )
    if clt.topology != "cross_layer" or clt.skip:
        raise UserError(
            "circuit-tracer's files are for topology cross_layer without skip: export with --format pretrained"
        )
    folder = Path(folder)
    folded = copy.deepcopy(clt).fold_()
    with whole_folder(folder, _is_export) as made:
        with torch.no_grad():
            for layer in range(clt.n_layers):
                _write_layer(folded, layer, made)
        lines = {
            "model_name": metadata.get("clip", {}).get("name", "unknown"),
            "model_kind": "cross_layer_transcoder",
            "feature_input_hook": "ln_2.output",
            "feature_output_hook": "ls_2.output",
        }
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
        (made / "config.yaml").write_text(text, encoding="utf-8")
        sums = [f"{sha256(path)}  {path.name}\n" for path in sorted(made.iterdir())]
        (made / SUMS).write_text("".join(sums), encoding="utf-8")
    return folder


def _write_layer(folded: CrossLayerTranscoder, layer: int, folder: Path) -> None:
    tensors = {
        f"W_enc_{layer}": folded.W_enc[layer].contiguous(),
        f"b_enc_{layer}": folded.b_enc[layer].contiguous(),
        f"b_dec_{layer}": folded.b_dec[layer].contiguous(),
    }
    if isinstance(folded.activation, (JumpReLU, BatchTopK)):
        threshold = folded.activation.threshold[layer].clamp(min=0).expand(folded.n_features)
        tensors[f"threshold_{layer}"] = threshold.contiguous()
    safetensors.torch.save_file(tensors, folder / f"W_enc_{layer}.safetensors")
    decoder = {f"W_dec_{layer}": folded.W_dec[layer].contiguous()}
    safetensors.torch.save_file(decoder, folder / f"W_dec_{layer}.safetensors")


def _is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but such files: one of more layers would leave some of its own among ours."""
    return folder.is_dir() and all(_FILES.fullmatch(path.name) for path in folder.iterdir())

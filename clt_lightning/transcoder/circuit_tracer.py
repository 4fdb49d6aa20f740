"""The file layout of circuit-tracer: one encoder and one decoder file a layer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.activations import BatchTopK, JumpReLU, ReLU

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder


def save_circuit_tracer(clt: CrossLayerTranscoder, folder: str | Path, metadata: dict[str, Any]) -> Path:
    """Writes `W_enc_<l>.safetensors` (W_enc, b_enc, b_dec and, but for ReLU, threshold), `W_dec_<l>.safetensors` and
    config.yaml.

    Args:
        clt: a cross-layer transcoder with ReLU, JumpReLU, or BatchTopK, which in evaluation is a JumpReLU with one
            threshold a layer.
        folder: made if it is not there.
        metadata: the backbone's description, for config.yaml.

    Raises:
        UserError: an activation or topology that the layout cannot express.
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
    folder.mkdir(parents=True, exist_ok=True)
    folded = copy.deepcopy(clt).fold_()
    with torch.no_grad():
        for layer in range(clt.n_layers):
            tensors = {
                f"W_enc_{layer}": folded.W_enc[layer].contiguous(),
                f"b_enc_{layer}": folded.b_enc[layer].contiguous(),
                f"b_dec_{layer}": folded.b_dec[layer].contiguous(),
            }
            if isinstance(folded.activation, (JumpReLU, BatchTopK)):
                threshold = folded.activation.threshold[layer].clamp(min=0).expand(clt.n_features)
                tensors[f"threshold_{layer}"] = threshold.contiguous()
            safetensors.torch.save_file(tensors, folder / f"W_enc_{layer}.safetensors")
            decoder = {f"W_dec_{layer}": folded.W_dec[layer].contiguous()}
            safetensors.torch.save_file(decoder, folder / f"W_dec_{layer}.safetensors")
    lines = {
        "model_name": metadata.get("clip", {}).get("name", "unknown"),
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "ln_2.output",
        "feature_output_hook": "ls_2.output",
    }
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))
    return folder

"""The file layout of circuit-tracer: one encoder and one decoder file a layer."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import whole_folder
from clt_lightning.transcoder.activations import BatchTopK, JumpReLU, ReLU

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder


def save_circuit_tracer(clt: CrossLayerTranscoder, folder: str | Path, metadata: dict[str, Any]) -> Path:
    """Writes `W_enc_<l>.safetensors` (W_enc, b_enc, b_dec and, but for ReLU, threshold), `W_dec_<l>.safetensors` and
    config.yaml.

    Args:
        clt: a cross-layer transcoder with ReLU, JumpReLU, or BatchTopK, which in evaluation is a JumpReLU with one
            threshold a layer.
        folder: made if it is not there; an older export in it is replaced as a whole.
        metadata: the backbone's description, for config.yaml.

    Raises:
        UserError: an activation or topology that the layout cannot express, a folder with other files in it, or a disk
            that does not take them.
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
    folded = copy.deepcopy(clt).fold_()
    with whole_folder(folder, _is_export) as place:
        for layer in range(clt.n_layers):
            safetensors.torch.save_file(_encoder(folded, layer), place / f"W_enc_{layer}.safetensors")
            decoder = {f"W_dec_{layer}": folded.W_dec[layer].detach().contiguous()}
            safetensors.torch.save_file(decoder, place / f"W_dec_{layer}.safetensors")
        lines = {
            "model_name": metadata.get("clip", {}).get("name", "unknown"),
            "model_kind": "cross_layer_transcoder",
            "feature_input_hook": "ln_2.output",
            "feature_output_hook": "ls_2.output",
        }
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
        (place / "config.yaml").write_text(text, encoding="utf-8")
    return Path(folder)


def _is_export(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else ["a file"]
    return all(name == "config.yaml" or re.fullmatch(r"W_(enc|dec)_\d+\.safetensors", name) for name in names)


@torch.no_grad()
def _encoder(folded: CrossLayerTranscoder, layer: int) -> dict[str, Tensor]:
    tensors = {
        f"W_enc_{layer}": folded.W_enc[layer].contiguous(),
        f"b_enc_{layer}": folded.b_enc[layer].contiguous(),
        f"b_dec_{layer}": folded.b_dec[layer].contiguous(),
    }
    if isinstance(folded.activation, (JumpReLU, BatchTopK)):
        threshold = folded.activation.threshold[layer].clamp(min=0).expand(folded.n_features)
        tensors[f"threshold_{layer}"] = threshold.contiguous()
    return tensors

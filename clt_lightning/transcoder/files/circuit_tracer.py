"""circuit-tracer's files: `CrossLayerTranscoder` (an encoder and a decoder file a layer) and `TranscoderSet` (one file
a layer).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import yaml

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_text, whole_folder
from clt_lightning.core.say import doubt
from clt_lightning.transcoder.activations import BatchTopK, JumpReLU, ReLU
from clt_lightning.transcoder.files.plain import (
    SUMS,
    Layer,
    blocks_of,
    build,
    cls_note,
    layers_of,
    numbered,
    read_tensors,
    take,
    write_sums,
)

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder

CONFIG, SKIPS = "config.yaml", "W_skip.safetensors"
#: Names of a TransformerLens block, to which circuit-tracer attaches: after ln2's weight and bias, and the MLP's output
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
_FILES = re.compile(rf"(W_(enc|dec)|layer)_\d+\.safetensors|{SKIPS}|config\.yaml|{SUMS}")


def refusal(clt: CrossLayerTranscoder) -> str | None:
    """Why circuit-tracer's files cannot hold a transcoder; None where they can."""
    if clt.topology == "sae":
        return "it knows transcoders alone, and this is an SAE (topology sae), which reads what it rebuilds"
    if (clt.sites.read, clt.sites.write) != ("mlp_in", "mlp_out"):
        return f"it attaches to MLPs, and this one reads {clt.sites.read} and rebuilds {clt.sites.write}"
    if blocks_of(clt) != list(range(clt.n_layers)):
        return f"it wants every layer from the first on, and this one stands at blocks {blocks_of(clt)}"
    if clt.d_out != clt.d_model:
        return f"it has one width, and this one reads {clt.d_model} and writes {clt.d_out}"
    if type(clt.activation) not in (ReLU, JumpReLU, BatchTopK):  # a subclass may do something else
        return f"it knows ReLU and thresholds (JumpReLU, BatchTopK), and this transcoder has {_name(clt)}"
    return None


def notes(clt: CrossLayerTranscoder) -> list[str]:
    """What a user of the files must know."""
    told = [
        "its loaders compute in bfloat16 by default, which gives other codes: tell them dtype=torch.float32",
    ]
    if clt.topology == "cross_layer" and clt.skip:
        told.append(
            f"its load_clt leaves the linear skip out: set it from {SKIPS} by hand (docs/interchange.md has the lines)"
        )
    if clt.cls_weight != 1:
        told.append(cls_note(clt))
    if isinstance(clt.activation, BatchTopK):
        told.append("BatchTopK becomes one threshold per layer, as in evaluation here")
    return told


def save_circuit_tracer(
    clt: CrossLayerTranscoder,
    folder: str | Path,
    metadata: dict[str, Any],
    dtype: torch.dtype | None = None,
    repository: str | None = None,
) -> Path:
    """Writes circuit-tracer's files, config.yaml, and `SHA256SUMS`, with which `sha256sum -c SHA256SUMS` checks them.

    Topology cross_layer: `W_enc_<l>.safetensors` (W_enc, b_enc, b_dec and, but for ReLU, threshold) and
    `W_dec_<l>.safetensors`; a linear skip lies in `W_skip.safetensors`, transposed as its class applies it, which its
    loader does not read. per_layer: `layer_<l>.safetensors`, skip included.

    Args:
        clt: a transcoder with ReLU, JumpReLU, or BatchTopK, which in evaluation is a JumpReLU with one threshold a
            layer.
        folder: made if it is not there; an earlier export in it is replaced, whole, when this one is.
        metadata: the backbone's description, for config.yaml.
        dtype: of the tensors; None: the transcoder's own.
        repository: `ORG/NAME` of the hub where the folder will lie: `scan`, and the addresses of a set's files.

    Raises:
        UserError: an activation or topology that the layout cannot express, a folder that holds something else, or one
            that cannot be written.
    """
    reason = refusal(clt)
    if reason is not None:
        raise UserError(f"circuit-tracer cannot take this transcoder: {reason}. Export with --format safetensors")
    name = str(metadata.get("clip", {}).get("name", "unknown"))
    crosses = clt.topology == "cross_layer"
    config: dict[str, Any] = {
        "model_name": name,
        "model_kind": "cross_layer_transcoder" if crosses else "transcoder_set",
        **HOOKS,
        "scan": repository or f"clt-lightning/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}",
    }
    folder = Path(folder)
    with whole_folder(folder, _is_export) as made:
        skips = {}
        for i, layer in enumerate(layers_of(clt, dtype)):
            if crosses:
                _write_crossing(layer, i, made)
                if layer.W_skip is not None:
                    skips[f"W_skip_{i}"] = layer.W_skip.T.contiguous()
            else:
                _write_own(layer, i, made)
        if skips:
            safetensors.torch.save_file(skips, made / SKIPS)
        if not crosses:
            names = [f"layer_{i}.safetensors" for i in range(clt.n_layers)]
            config["transcoders"] = [f"hf://{repository}/{file}" if repository else file for file in names]
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())
        (made / CONFIG).write_text(text, encoding="utf-8")
        write_sums(made)
    return folder


def _write_crossing(layer: Layer, i: int, folder: Path) -> None:
    tensors = {f"W_enc_{i}": layer.W_enc, f"b_enc_{i}": layer.b_enc, f"b_dec_{i}": layer.b_dec}
    if layer.threshold is not None:
        tensors[f"threshold_{i}"] = layer.threshold
    safetensors.torch.save_file(tensors, folder / f"W_enc_{i}.safetensors")
    safetensors.torch.save_file({f"W_dec_{i}": layer.W_dec}, folder / f"W_dec_{i}.safetensors")


def _write_own(layer: Layer, i: int, folder: Path) -> None:
    tensors = {
        "W_enc": layer.W_enc,
        "b_enc": layer.b_enc,
        "W_dec": layer.W_dec[:, 0].contiguous(),
        "b_dec": layer.b_dec,
    }
    if layer.threshold is not None:
        tensors["activation_function.threshold"] = layer.threshold
    if layer.W_skip is not None:
        tensors["W_skip"] = layer.W_skip
    safetensors.torch.save_file(tensors, folder / f"layer_{i}.safetensors")


def _is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but such files: one of more layers would leave some of its own among ours."""
    return folder.is_dir() and all(_FILES.fullmatch(path.name) for path in folder.iterdir())


def _name(clt: CrossLayerTranscoder) -> str:
    return type(clt.activation).__name__


# -- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Path) -> CrossLayerTranscoder | None:
    """A transcoder from circuit-tracer's files; None where the folder holds none.

    Raises:
        UserError: a layer is missing, or a file does not hold what it should.
    """
    encoders = numbered(folder, r"W_enc_(\d+)\.safetensors")
    own = [] if encoders else numbered(folder, r"layer_(\d+)\.safetensors")
    if not encoders and not own:
        return None
    _look_at_hooks(folder)
    if own:
        return build([_read_own(path) for path in own], "per_layer", ReLU())
    skips = read_tensors(folder / SKIPS) if (folder / SKIPS).is_file() else {}
    layers = []
    for i, path in enumerate(encoders):
        tensors = read_tensors(path)
        decoder = folder / f"W_dec_{i}.safetensors"
        if not decoder.is_file():
            raise UserError(f"{folder} has no {decoder.name}")
        W_enc, b_enc, b_dec = take(tensors, [f"{name}_{i}" for name in ("W_enc", "b_enc", "b_dec")], path)
        (W_dec,) = take(read_tensors(decoder), [f"W_dec_{i}"], decoder)
        skip = skips.get(f"W_skip_{i}")
        layers.append(
            Layer(W_enc, b_enc, W_dec, b_dec, tensors.get(f"threshold_{i}"), None if skip is None else skip.T)
        )
    return build(layers, "cross_layer", ReLU())


def _read_own(path: Path) -> Layer:
    tensors = read_tensors(path)
    W_enc, b_enc, W_dec, b_dec = take(tensors, ("W_enc", "b_enc", "W_dec", "b_dec"), path)
    return Layer(
        W_enc, b_enc, W_dec[:, None], b_dec, tensors.get("activation_function.threshold"), tensors.get("W_skip")
    )


def _look_at_hooks(folder: Path) -> None:
    """Says where a transcoder was trained on another site than this package's backbones hand to it."""
    path = folder / CONFIG
    if not path.is_file():
        return
    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    known = {
        "feature_input_hook": {"mlp.hook_in", "ln_2.output"},
        "feature_output_hook": {"mlp.hook_out", "hook_mlp_out", "ls_2.output"},
    }
    for key, names in known.items():
        hook = config.get(key) if isinstance(config, dict) else None
        if hook is not None and hook not in names:
            doubt(f"{path}: {key} is {hook}, not an MLP's input after LayerNorm and its output, which CLIPs give here")

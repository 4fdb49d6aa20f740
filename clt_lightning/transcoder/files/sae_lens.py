"""SAELens: a folder a layer with `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, whole_folder
from clt_lightning.core.say import doubt
from clt_lightning.transcoder.activations import AbsTopK, Activation, BatchTopK, JumpReLU, ReLU, TopK
from clt_lightning.transcoder.files.plain import (
    HOOKS,
    SUMS,
    Layer,
    blocks_of,
    build,
    cls_note,
    layers_of,
    numbered,
    read_tensors,
    sites_of,
    take,
    write_sums,
)

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
#: with which version its numbers were compared
VERSION = "6.54.12"
_FOLDERS = re.compile(r"layer_\d+")
_SAES: dict[type[Activation], str] = {
    ReLU: "standard",
    JumpReLU: "jumprelu",
    BatchTopK: "jumprelu",
    TopK: "topk",
    AbsTopK: "abstopk",
}
_TRANSCODERS: dict[type[Activation], str] = {
    ReLU: "transcoder",
    JumpReLU: "jumprelu_transcoder",
    BatchTopK: "jumprelu_transcoder",
}
_WITH_SKIP = {"transcoder": "skip_transcoder", "jumprelu_transcoder": "jumprelu_skip_transcoder"}
_KNOWN = {*_SAES.values(), *_TRANSCODERS.values(), *_WITH_SKIP.values()}


def refusal(clt: CrossLayerTranscoder) -> str | None:
    """Why SAELens cannot hold a transcoder; None where it can."""
    if clt.topology == "cross_layer":
        return "it has no form for features that write to several layers (topology cross_layer)"
    if clt.normalization == "token":
        return "its normalisation of tokens is another one (normalize: token)"
    known = _SAES if clt.topology == "sae" else _TRANSCODERS
    if type(clt.activation) not in known:
        names = ", ".join(kind.__name__ for kind in known)
        return f"its {'SAEs' if clt.topology == 'sae' else 'transcoders'} know {names}, and this one has " + (
            type(clt.activation).__name__
        )
    return None


def notes(clt: CrossLayerTranscoder) -> list[str]:
    """What a user of the files must know."""
    told = ["load each layer with SAE.load_from_disk(folder/layer_<l>)"]
    if clt.skip:
        told.append("decode(encode(x)) leaves its skip out: only calling it, or forward, has it")
    if isinstance(clt.activation, BatchTopK):
        told.append("BatchTopK becomes one threshold per layer, as in evaluation here")
    if clt.cls_weight != 1:
        told.append(cls_note(clt))
    return told


def save_sae_lens(
    clt: CrossLayerTranscoder,
    folder: str | Path,
    metadata: dict[str, Any],
    dtype: torch.dtype | None = None,
    repository: str | None = None,
) -> Path:
    """Writes `layer_<l>/cfg.json` and `layer_<l>/sae_weights.safetensors`, and `SHA256SUMS`.

    Args:
        clt: a transcoder of topology per_layer (ReLU, JumpReLU, BatchTopK) or sae (also TopK, AbsTopK).
        folder: made if it is not there; an earlier export in it is replaced, whole, when this one is.
        metadata: the backbone's description, for cfg.json.
        dtype: of the tensors; None: the transcoder's own.
        repository: not needed here.

    Raises:
        UserError: an activation or topology that SAELens lacks, a folder that holds something else, or one that cannot
            be written.
    """
    reason = refusal(clt)
    if reason is not None:
        raise UserError(f"SAELens cannot take this transcoder: {reason}. Export with --format safetensors")
    folder = Path(folder)
    with whole_folder(folder, _is_export) as made:
        for i, layer in enumerate(layers_of(clt, dtype)):
            place = made / f"layer_{i}"
            place.mkdir()
            tensors = {
                "W_enc": layer.W_enc.T.contiguous(),
                "b_enc": layer.b_enc,
                "W_dec": layer.W_dec[:, 0].contiguous(),
                "b_dec": layer.b_dec,
            }
            if layer.threshold is not None:
                tensors["threshold"] = layer.threshold
            if layer.W_skip is not None:
                tensors["W_skip"] = layer.W_skip
            safetensors.torch.save_file(tensors, place / WEIGHTS)
            (place / CONFIG).write_text(json.dumps(_config(clt, i, metadata, dtype), indent=2), encoding="utf-8")
        write_sums(made)
    return folder


def _config(
    clt: CrossLayerTranscoder, layer: int, metadata: dict[str, Any], dtype: torch.dtype | None
) -> dict[str, Any]:
    sae, block = clt.topology == "sae", blocks_of(clt)[layer]
    architecture = (_SAES if sae else _TRANSCODERS)[type(clt.activation)]
    about: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "model_name": str(metadata.get("clip", {}).get("name", "unknown")),
        "hook_name": _hook(str(clt.sites.read), block),
        "prepend_bos": False,
    }
    config: dict[str, Any] = {
        "architecture": _WITH_SKIP[architecture] if clt.skip else architecture,
        "d_in": clt.d_model,
        "d_sae": clt.n_features,
        "dtype": str(dtype or clt.b_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": about,
    }
    if not sae:
        config["d_out"] = clt.d_out
        about["hook_name_out"] = _hook(str(clt.sites.write), block)
    if isinstance(clt.activation, TopK):
        config["k"] = min(clt.activation.k, clt.n_features)
        config["rescale_acts_by_decoder_norm"] = False
    return config


def _hook(site: str, block: int) -> str:
    """TransformerLens's name of a site; the site's own where it has none."""
    return f"blocks.{block}.{HOOKS[site]}" if site in HOOKS else site


def _is_export(folder: Path) -> bool:
    def ours(path: Path) -> bool:
        inside = path.is_dir() and {p.name for p in path.iterdir()} <= {CONFIG, WEIGHTS}
        return path.name == SUMS or (inside and _FOLDERS.fullmatch(path.name) is not None)

    return folder.is_dir() and all(ours(path) for path in folder.iterdir())


# -- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Path) -> CrossLayerTranscoder | None:
    """A transcoder from SAELens's files: one folder, or one per layer (`layer_0`, `layer_1`, ...); None without any.

    Raises:
        UserError: an architecture, normalisation or shape that has no counterpart here, or layers that differ in kind.
    """
    if (folder / CONFIG).is_file():
        places = [folder]
    else:
        places = [path for path in numbered(folder, r"layer_0*(\d+)") if (path / CONFIG).is_file()]
    if not places:
        return None
    found = [_read_layer(place) for place in places]
    kinds = {(topology, repr(activation.config())) for _, topology, activation, _ in found}
    if len(kinds) > 1:
        raise UserError(f"{folder}: the layers differ in kind: {', '.join(sorted(' '.join(k) for k in kinds))}")
    sites = sites_of([hooks for _, _, _, hooks in found])
    if sites is None:
        told = ", ".join(sorted({hook for _, _, _, hooks in found for hook in hooks if hook})) or "none"
        doubt(f"{folder}: hook names {told} are no sites known here: MLPs of all layers are taken")
    return build([layer for layer, _, _, _ in found], found[0][1], found[0][2], sites)  # type: ignore[arg-type]


def _read_layer(folder: Path) -> tuple[Layer, str, Activation, tuple[str, str]]:
    config = read_json(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder} has {CONFIG}, but no {WEIGHTS}")
    architecture = str(config.get("architecture", "standard"))
    _check(config, architecture, folder)
    tensors = read_tensors(path)
    W_enc, b_enc, W_dec, b_dec = take(tensors, ("W_enc", "b_enc", "W_dec", "b_dec"), path)
    W_enc = W_enc.T
    sae = "transcoder" not in architecture
    if sae and config.get("apply_b_dec_to_input", True):
        b_enc = b_enc - W_enc @ b_dec  # W (x - b_dec) + b
    if config.get("rescale_acts_by_decoder_norm", False):
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms[:, None]
    activation: Activation = ReLU()
    if architecture in ("topk", "abstopk"):
        activation = (TopK if architecture == "topk" else AbsTopK)(int(config["k"]))
    threshold: Tensor | None = None
    if architecture.startswith("jumprelu"):
        (threshold,) = take(tensors, ("threshold",), path)
    layer = Layer(W_enc, b_enc, W_dec[:, None], b_dec, threshold, tensors.get("W_skip"))
    about = config.get("metadata") or {}
    reads = str(about.get("hook_name") or config.get("hook_name") or config.get("hook_point") or "")
    writes = str(about.get("hook_name_out") or config.get("hook_name_out") or "")
    return layer, "sae" if sae else "per_layer", activation, (reads, reads if sae else writes)


def _check(config: dict[str, Any], architecture: str, folder: Path) -> None:
    """Whether there is something here that computes the same.

    Raises:
        UserError: there is not; the message names the key.
    """
    path = folder / CONFIG
    if architecture not in _KNOWN:
        raise UserError(
            f"{path}: architecture {architecture!r} has no counterpart here ({', '.join(sorted(_KNOWN))} do)"
        )
    for key, value in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if config.get(key, value) not in (value, None):
            raise UserError(f"{path}: {key} is {config[key]!r}, which has no counterpart here ({value!r} has)")
    if architecture in ("topk", "abstopk") and not isinstance(config.get("k"), int):
        raise UserError(f"{path}: architecture {architecture} needs a whole number k, got {config.get('k')!r}")

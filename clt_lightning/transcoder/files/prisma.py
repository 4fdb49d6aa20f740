"""Prisma's SAEs and transcoders of ViTs: `config.json` beside one `.pt` file of weights. Read only."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_text
from clt_lightning.core.kinds import first_line
from clt_lightning.core.say import doubt
from clt_lightning.transcoder.activations import Activation, ReLU, TopK
from clt_lightning.transcoder.files.plain import Layer, build, sites_of, take

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder

CONFIG = "config.json"


def read(folder: Path) -> CrossLayerTranscoder | None:
    """A transcoder of one layer from a folder of Prisma's; None where there is none.

    Raises:
        UserError: an architecture, activation or normalisation that has no counterpart here, or weights that cannot be
            read without running code.
    """
    path = folder / CONFIG
    weights = sorted(folder.glob("*.pt"))
    if not path.is_file() or not weights:
        return None
    try:
        config = json.loads(read_text(path))
    except json.JSONDecodeError:
        return None
    if not isinstance(config, dict) or not {"d_in", "hook_point"} & set(config) or "format" in config:
        return None
    if len(weights) > 1:
        names = ", ".join(file.name for file in weights)
        raise UserError(f"{folder} holds several files of weights ({names}): leave one in it")
    _check(config, path)
    tensors = _weights(weights[0])
    transcoder = "b_dec_out" in tensors
    W_enc, b_enc, W_dec, b_dec = take(tensors, ("W_enc", "b_enc", "W_dec", "b_dec"), weights[0])
    W_enc = W_enc.T
    layer = Layer(
        W_enc,
        b_enc - W_enc @ b_dec,  # its input has b_dec taken off
        W_dec[:, None],
        tensors["b_dec_out"] if transcoder else b_dec,
        W_skip=tensors.get("W_skip"),
    )
    activation: Activation = ReLU()
    if config.get("activation_fn_str", "relu") == "topk":
        activation = TopK(int((config.get("activation_fn_kwargs") or {}).get("k", 0)))
    hook = str(config.get("hook_point") or "")
    sites = None if transcoder else sites_of([(hook, hook)])
    if sites is None and not transcoder:
        doubt(f"{path}: hook_point {hook!r} is no site known here: MLP outputs are taken")
    return build([layer], "per_layer" if transcoder else "sae", activation, sites)


def _check(config: dict[str, Any], path: Path) -> None:
    def refuse(key: str, value: Any, why: str) -> UserError:
        return UserError(f"{path}: {key} is {value!r}, which has no counterpart here: {why}")

    architecture = config.get("architecture", "standard")
    if architecture not in ("standard", "vanilla", "transcoder"):
        raise refuse("architecture", architecture, "standard SAEs and transcoders have one")
    activation = config.get("activation_fn_str", "relu")
    if activation not in ("relu", "topk"):
        raise refuse("activation_fn_str", activation, "relu and topk have one")
    normalize = config.get("normalize_activations", "none")
    if normalize not in ("none", None, ""):
        raise refuse(
            "normalize_activations", normalize, "it scales every token by its own norm, which no weight can do"
        )
    for key, tokens in (("cls_token_only", "[CLS]"), ("use_patches_only", "patches")):
        if config.get(key):
            doubt(f"{path}: trained on {tokens} alone ({key}): its codes elsewhere mean nothing")


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise UserError(
            f"cannot read {path} without running code of it ({first_line(error)}). Where you trust it, write its "
            "tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], FILE)"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no table of tensors, but {type(found).__name__}")
    return {str(name): tensor.float() for name, tensor in found.items() if isinstance(tensor, Tensor)}

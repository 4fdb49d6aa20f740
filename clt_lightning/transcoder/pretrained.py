"""config.json + model.safetensors: the form in which transcoders travel."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import whole_file, write_json
from clt_lightning.transcoder import activations

FORMAT = "clt_lightning/1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
M = TypeVar("M", bound=nn.Module)


def save(arguments: dict[str, Any], state: dict[str, Tensor], folder: str | Path, metadata: dict[str, Any]) -> Path:
    """Writes arguments and folded state; each file under a temporary name first, so that none is ever half-written."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = {"format": FORMAT, **arguments, "metadata": metadata}
    with whole_file(folder / WEIGHTS) as path:
        safetensors.torch.save_file(tensors, path, {"format": FORMAT})
    write_json(folder / CONFIG, config, indent=2)
    return folder


def load(folder_or_hub_id: str | Path, **hub: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads config and tensors from a folder or a Hugging Face repository.

    Raises:
        UserError: neither a folder nor a hub id, a file is missing, or the config is not ours.
    """
    folder = Path(folder_or_hub_id)
    if not folder.is_dir():
        folder = _download(str(folder_or_hub_id), **hub)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}: is it a folder that save_pretrained or the end of fit wrote?")
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read the transcoder in {folder}: {error}") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(f"{folder / CONFIG}: format {found!r}, this version reads {FORMAT!r}")
    return config, tensors


def _download(hub_id: str, **hub: Any) -> Path:
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        raise UserError(f"{hub_id}: no such folder (and not of the form user/name of a Hugging Face repository)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG, WEIGHTS], **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{hub_id}: no such folder, and the hub did not give it: {error}") from error


def build(cls: type[M], config: dict[str, Any], tensors: dict[str, Tensor]) -> M:
    """Builds the transcoder and loads its tensors strictly.

    Raises:
        UserError: config.json has keys or values that the transcoder does not take, or the tensors do not fit it.
    """
    arguments = {key: value for key, value in config.items() if key not in ("format", "metadata")}
    parameters = inspect.signature(cls).parameters
    unknown = sorted(set(arguments) - set(parameters))
    required = {name for name, p in parameters.items() if p.default is p.empty} | {"activation"}
    missing = sorted(required - set(arguments))
    if unknown or missing:
        problems = [
            f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names
        ]
        raise UserError(f"{CONFIG} of the transcoder: keys {'; '.join(problems)} (known are {', '.join(parameters)})")
    try:
        arguments["activation"] = activations.from_config(arguments["activation"])
        with torch.device("cpu"):
            clt = cls(**arguments)
    except (UserError, TypeError) as error:
        raise UserError(f"{CONFIG} of the transcoder: {error}") from error
    try:
        clt.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit their {CONFIG}: {error}") from error
    return clt

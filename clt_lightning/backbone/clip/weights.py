"""Files of weights, read by what they are: one dict of tensors, or one sentence on why not."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clt_lightning.backbone.clip import torchscript
from clt_lightning.core import kinds
from clt_lightning.core.errors import UserError

#: Numbers that OpenAI's archives carry among their tensors; nobody else's do
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_NATIVE = "one with a Vision Transformer is needed"
_PREFIXES = ("module.", "_orig_mod.")

#: A key's beginning, whose layout that is, what to do
_LAYOUTS = (
    (
        ("vision_model.", "text_model.", "clip.vision_model."),
        "weights of transformers' CLIPModel",
        "open_clip's layout is needed: give a tag (clip.pretrained=openai has the same weights as "
        "openai/clip-vit-...), or a repository with an open_clip_config.json",
    ),
    (
        ("embeddings.patch_embeddings.", "vit.embeddings.", "encoder.layer.", "encoder.layers."),
        "weights of a model of transformers'",
        "open_clip's layout is needed, with an image tower and a text tower",
    ),
    (("patch_embed.", "blocks.0."), "weights of a timm model without a text tower", "take the backbone FrozenViT"),
    (("image_encoder.",), "weights of MobileCLIP", _NATIVE),
    (("visual.layer1.",), "a CLIP with a ResNet for images", _NATIVE),
    (("transcoder.", "W_enc.", "W_enc_"), "a transcoder", "the backbone's weights are needed here"),
    (("lora_", "base_model.model."), "an adapter (LoRA)", "merge it into its model, and give that"),
)


@dataclass(frozen=True)
class Weights:
    """The tensors of a file.

    Attributes:
        path: the file.
        state: by name, as open_clip's models name them.
        quick_gelu: whether they were trained with QuickGELU, where the file itself says so.
    """

    path: Path
    state: dict[str, Tensor]
    quick_gelu: bool | None = None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], bool | None]:
    """Reads the tensors of a file, by name, and whether they compute QuickGELU where it says so.

    No pickle is executed and no code run, whatever the file is.

    Args:
        path: safetensors, a file of `torch.save` (the state dict itself, or under `state_dict`), or a TorchScript
            archive; its ending does not matter.

    Raises:
        UserError: it is something else, damaged, or of another model; the message says what, and what to do.
    """
    try:
        kind = kinds.kind_of(path)
        if kind.name == kinds.SAFETENSORS:
            content, quick_gelu = _read_safetensors(path), None
        elif kind.name == kinds.TORCHSCRIPT:
            content, quick_gelu = torchscript.read_tensors(path), torchscript.computes_quick_gelu(path)
        elif kind.name == kinds.TORCH:
            content, quick_gelu = _read_torch(path), None
        elif kind.name == kinds.PICKLE:
            raise UserError(
                f"'{path}' is a pickle that torch.save did not write: to read it is to run what it holds, which is not "
                "done. Where the file was made, save tensors: torch.save(model.state_dict(), path)"
            )
        else:
            raise UserError(f"'{path}' {kind}")
    except torchscript.DamagedArchive as error:
        raise UserError(
            f"'{path}' is a TorchScript archive that cannot be read: {error}. Fetch or copy it again"
        ) from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    return _state_dict(content, path), quick_gelu


def read_weights(path: Path) -> Weights:
    """The tensors of a CLIP in open_clip's layout (`read_tensors`).

    Raises:
        UserError: what `read_tensors` raises, or weights of another model.
    """
    state, quick_gelu = read_tensors(path)
    _check_layout(state, path)
    marked = [name for name in OPENAI_MARKS if name in state]
    for name in marked:
        del state[name]
    if quick_gelu is None and len(marked) == len(OPENAI_MARKS):
        quick_gelu = True
    return Weights(path, state, quick_gelu)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"'{path}' is a safetensors file that is cut off or damaged ({kinds.first_line(error)}): "
            "fetch or copy it again"
        ) from error


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            try:
                bad = file.testzip()  # torch.load does not look at the checksums
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise UserError(f"'{path}' is cut off or damaged ({error}): fetch or copy it again") from error
        if bad is not None:
            raise UserError(f"'{path}' is damaged: record {bad} does not have its checksum. Fetch or copy it again")
    try:
        with path.open("rb") as file:  # given a name, torch goes by its ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' {kinds.refused_objects(path, error)}. Where the file was made, save tensors and plain numbers "
            "alone: torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"'{path}' is a file of torch.save that is cut off or damaged ({kinds.first_line(error)}): "
            "fetch or copy it again"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The dict of tensors in what a file holds, without the names that wrappers (DDP, torch.compile) put before."""
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not a state dict: save model.state_dict()")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        found = ", ".join(repr(str(name)) for name in list(content)[:5]) or "nothing"
        raise UserError(f"'{path}' holds no tensors (it holds {found}): save model.state_dict()")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "has no contents (device meta)" if tensor.is_meta else f"is {tensor.layout}, not a dense tensor"
            raise UserError(f"'{path}': {name} {kind}: save the weights as they are computed with")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check_layout(names: Iterable[str], path: Path) -> None:
    names = list(names)
    if any(name.startswith(("visual.transformer.", "visual.conv1.", "visual.trunk.")) for name in names):
        return
    for beginnings, words, remedy in _LAYOUTS:
        if any(name.startswith(beginnings) for name in names):
            raise UserError(f"'{path}' holds {words}: {remedy}")
    shown = ", ".join(names[:3])
    raise UserError(
        f"'{path}' is of no layout that open_clip's Vision Transformers have (it holds {shown}, ...): weights with "
        "names such as visual.transformer.resblocks.0.mlp.c_fc.weight are needed"
    )

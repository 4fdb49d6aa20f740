"""Which architecture a set of weights is of, as its shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
from torch import Tensor


def architecture(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The architecture of a CLIP in open_clip's own (and OpenAI's) layout.

    Numbers of heads have no trace in the weights: they are those of OpenAI's models, one for every 64 channels.

    Args:
        state: tensors by name; their contents do not matter.

    Returns:
        `embed_dim`, `vision_cfg` and `text_cfg` as open_clip's configs have them; None for another layout.
    """
    shapes = {name.removeprefix("text."): tuple(tensor.shape) for name, tensor in state.items()}
    try:
        width, _, patch, _ = shapes["visual.conv1.weight"]
        positions = shapes["visual.positional_embedding"][0]
        side = round((positions - 1) ** 0.5)
        context, text_width = shapes["positional_embedding"]
        found: dict[str, Any] = {
            "embed_dim": shapes["visual.proj"][1],
            "vision_cfg": {
                "image_size": patch * side,
                "layers": _blocks(shapes, "visual.transformer.resblocks."),
                "width": width,
                "patch_size": patch,
            },
            "text_cfg": {
                "context_length": context,
                "vocab_size": shapes["token_embedding.weight"][0],
                "width": text_width,
                "heads": max(1, text_width // 64),
                "layers": _blocks(shapes, "transformer.resblocks."),
            },
        }
    except (KeyError, IndexError, ValueError):
        return None
    return found if side**2 == positions - 1 else None


def names_of(found: Mapping[str, Any]) -> list[str]:
    """Names of open_clip's, both towers its own, with the sizes of an architecture."""
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    own = {name: config for name, config in configs.items() if _is_native(config)}
    return [name for name, config in own.items() if _sizes(config) == _sizes(found)]


def in_words(found: Mapping[str, Any]) -> str:
    """An architecture's sizes for a message."""
    vision, text = found["vision_cfg"], found["text_cfg"]
    return (
        f"{vision['layers']} blocks of width {vision['width']}, patches of {vision['patch_size']}, images of "
        f"{vision['image_size']}, embeddings of {found['embed_dim']}, a text tower of {text['layers']} blocks of width "
        f"{text['width']}"
    )


def _blocks(shapes: Mapping[str, Any], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def _is_native(config: Mapping[str, Any]) -> bool:
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    return "multimodal_cfg" not in config and "timm_model_name" not in vision and "hf_model_name" not in text


def _sizes(config: Any) -> list[Any]:
    defaults = {"context_length": 77, "vocab_size": 49408, "layers": 12, "width": 768, "image_size": 224}
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    text_defaults = defaults | {"width": 512}
    return [
        config.get("embed_dim"),
        *(vision.get(key, defaults.get(key)) for key in ("image_size", "layers", "width", "patch_size")),
        *(text.get(key, text_defaults.get(key)) for key in ("context_length", "vocab_size", "width", "layers")),
    ]

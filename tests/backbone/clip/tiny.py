"""Tiny CLIPs, written as a user's own checkpoint would be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.words import WordTokenizer

Maker = Callable[..., FrozenCLIP]
TOKENIZER = WordTokenizer.from_texts(["a photo of a drawing red blue cat dog big small the"], 12)


def tiny_config(quick_gelu: bool = False, **vision: Any) -> dict[str, Any]:
    return {
        "embed_dim": 24,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16, **vision},
        "text_cfg": {
            "context_length": TOKENIZER.context_length,
            "vocab_size": TOKENIZER.vocab_size,
            "width": 16,
            "heads": 2,
            "layers": 2,
        },
    }


def write_tiny(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "bias")) or parameter.ndim == 1:
            # away from their trivial initial values: a test must notice when one of them is left out
            parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    tokenizer = {"words": TOKENIZER.words, "context_length": TOKENIZER.context_length}
    path = folder / "open_clip_model.safetensors"
    save_file(model.state_dict(), path)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "tokenizer": tokenizer}))
    return path

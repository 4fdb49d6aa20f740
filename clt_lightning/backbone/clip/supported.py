"""Which architectures a transcoder can be put into: Vision Transformers of open_clip's own, and of timm's."""

from __future__ import annotations

from typing import Any

import timm
import torch

from clt_lightning.backbone.families.timm import TimmEva, TimmViT
from clt_lightning.core.errors import UserError

_NEEDED = "a Vision Transformer is needed, whose blocks are read and overridden"


def check_config(name: str, cfg: Any) -> None:
    """Refuse what cannot work before anything large is built or downloaded."""
    vision, text = (cfg.get(part) if isinstance(cfg, dict) else None for part in ("vision_cfg", "text_cfg"))
    if not isinstance(vision, dict) or not isinstance(text, dict) or not isinstance(cfg.get("embed_dim"), int):
        raise UserError(
            f"'{name}': its model_cfg must have embed_dim, vision_cfg and text_cfg, as open_clip writes them"
        )
    if isinstance(vision.get("layers"), (list, tuple)):
        raise UserError(f"'{name}' has a ResNet for images: {_NEEDED}")
    if vision.get("timm_model_name"):
        _check_timm(name, str(vision["timm_model_name"]))


def _check_timm(name: str, tower: str) -> None:
    if not timm.is_model(tower):
        raise UserError(f"'{name}' has a timm tower for images, '{tower}', that timm {timm.__version__} does not know")
    with torch.device("meta"):  # no memory, and no random weights for nothing
        trunk = timm.create_model(tower)
    if not any(kind.fits(trunk) for kind in (TimmViT, TimmEva)):
        raise UserError(f"'{name}' has the timm tower '{tower}' for images, a {type(trunk).__name__}: {_NEEDED}")

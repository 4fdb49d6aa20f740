"""Which architectures a transcoder can be put into: Vision Transformers of open_clip's own."""

from __future__ import annotations

from typing import Any

from clt_lightning.core.errors import UserError


def check_config(name: str, cfg: Any) -> None:
    """Refuse what cannot work before anything large is built or downloaded."""
    vision, text = (cfg.get(part) if isinstance(cfg, dict) else None for part in ("vision_cfg", "text_cfg"))
    if not isinstance(vision, dict) or not isinstance(text, dict) or not isinstance(cfg.get("embed_dim"), int):
        raise UserError(
            f"'{name}': its model_cfg must have embed_dim, vision_cfg and text_cfg, as open_clip writes them"
        )
    if vision.get("timm_model_name") or isinstance(vision.get("layers"), (list, tuple)):
        kind = "a timm tower" if vision.get("timm_model_name") else "a ResNet"
        raise UserError(f"'{name}' has {kind} for images: a Vision Transformer of open_clip's own is needed")


def check_tower(name: str, model: Any) -> Any:
    """The image tower of a built model, if it has the parts that are captured and replaced; a UserError otherwise."""
    visual = getattr(model, "visual", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    if visual is None or not blocks or not all(hasattr(b, part) for b in blocks for part in ("ln_2", "mlp", "ls_2")):
        raise UserError(f"'{name}' has no image tower of residual blocks with `ln_2`, `mlp` and `ls_2`")
    if visual.image_size[0] != visual.image_size[1]:
        raise UserError(f"'{name}' reads images of {visual.image_size} pixels: only square ones are supported")
    return visual

"""One file for each library's layout of Vision Transformers; the first that fits a module is taken."""

from __future__ import annotations

from typing import Any

from clt_lightning.backbone.families.base import At, Family, Readout
from clt_lightning.backbone.families.hugging_face import HuggingFaceViT
from clt_lightning.backbone.families.open_clip import OpenClipViT
from clt_lightning.backbone.families.open_clip_timm import OpenClipTimm
from clt_lightning.backbone.families.timm import TimmEva, TimmViT
from clt_lightning.core.errors import UserError

__all__ = ["FAMILIES", "At", "Family", "Readout", "family_of"]

FAMILIES = (OpenClipViT, OpenClipTimm, TimmViT, TimmEva, HuggingFaceViT)


def family_of(model: Any, name: str) -> Family:
    """A model in parts.

    Args:
        model: a module of open_clip, timm or transformers.
        name: what it is called, for the message.

    Raises:
        UserError: it is no Vision Transformer of a known layout.
    """
    for family in FAMILIES:
        if family.fits(model):
            return family(model, name)
    visual = getattr(model, "visual", model)
    kind = type(getattr(visual, "trunk", visual)).__name__
    raise UserError(
        f"'{name}' is a {kind}: a Vision Transformer of a layout that is known is needed (open_clip's own, timm's "
        "VisionTransformer and Eva, transformers' ViT, Dinov2, CLIP and SigLIP; docs/backbones.md), or a family of "
        "your own (from_model(module, family=...)). Convolutional networks have no residual stream of tokens that a "
        "transcoder could read"
    )

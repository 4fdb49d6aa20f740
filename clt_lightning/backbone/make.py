"""A backbone from plain settings, and back."""

from __future__ import annotations

from typing import Any, Literal

from clt_lightning.backbone.backbone import Backbone
from clt_lightning.core.errors import UserError, setting

Library = Literal["open_clip", "timm"]
#: `pretrained` of a backbone that was made by other hands
GIVEN = "given"


def make_backbone(
    library: Library,
    name: str,
    pretrained: str | None,
    precision: str,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """A `FrozenCLIP` or a `FrozenViT`.

    Args:
        library: `open_clip` or `timm`.
        name, pretrained, precision, seed: as `FrozenCLIP` and `FrozenViT` take them.
        image_size: of a `FrozenViT`.

    Raises:
        UserError: what these raise; an image size for open_clip; or settings of a backbone that no settings make.
    """
    if pretrained == GIVEN:
        raise UserError(
            f"the backbone '{name}' was given as an object (FrozenViT.from_model): give it again, "
            "such as CLTModule.load_from_checkpoint(path, backbone=backbone)"
        )
    if library == "timm":
        from clt_lightning.backbone.vit import FrozenViT

        return FrozenViT(name, pretrained, precision, image_size, seed)
    if image_size is not None:
        raise UserError(f"{setting('image_size')}={image_size}: open_clip's models have one size; timm's take another")
    from clt_lightning.backbone.clip import FrozenCLIP

    return FrozenCLIP(name, pretrained, precision, seed)


def settings_of(backbone: Backbone) -> dict[str, Any]:
    """The settings that make a backbone like this one."""
    is_clip = backbone.has_text
    return {
        "library": "open_clip" if is_clip else "timm",
        "name": backbone.name,
        "pretrained": backbone.pretrained,
        "precision": backbone.precision,
        "image_size": None if is_clip else backbone.image_size,
    }

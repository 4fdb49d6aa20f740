"""open_clip's models with an image tower of timm's: SigLIP, EVA02, Perception Encoder, ViTamin."""

from __future__ import annotations

from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from clt_lightning.backbone.attention_parts import AttentionParts
from clt_lightning.backbone.families.base import At, Family, Readout
from clt_lightning.backbone.families.timm import TimmEva, TimmViT


class OpenClipTimm(Family):
    """A `TimmModel` of open_clip: timm's trunk, then open_clip's head."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.visual = getattr(model, "visual", model)
        trunk = self.visual.trunk
        self.trunk = next(kind for kind in (TimmViT, TimmEva) if kind.fits(trunk))(trunk, name)
        for shared in ("blocks", "grid", "tokens", "image_size", "d_model", "norm"):
            setattr(self, shared, getattr(self.trunk, shared))
        linears = [m for m in self.visual.head.modules() if isinstance(m, nn.Linear)]
        own = [trunk.head] if isinstance(trunk.head, nn.Linear) else []
        last = (linears or own)[-1:]
        self.embed_dim = int(last[0].out_features) if last else int(trunk.num_features)

    @classmethod
    def fits(cls, model: Any) -> bool:
        visual = getattr(model, "visual", model)
        return isinstance(visual, TimmModel) and any(kind.fits(visual.trunk) for kind in (TimmViT, TimmEva))

    def encode(self, images: Tensor) -> Tensor:
        found: Tensor = self.visual(images)
        return found

    def after(self, stream: Tensor) -> Tensor:
        trunk: Any = self.visual.trunk
        found: Tensor = self.visual.head(trunk.forward_head(trunk.norm(stream)))
        return found

    def norms(self, block: Any) -> tuple[nn.Module | None, nn.Module | None]:
        return self.trunk.norms(block)

    def attention(self, block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.trunk.attention(block, x, *args, **kwargs)

    def attention_parts(self, layer: int, name: str) -> AttentionParts:
        return self.trunk.attention_parts(layer, name)

    def attention_at_cls(self, layer: int, x: Tensor) -> Tensor | None:
        return self.trunk.attention_at_cls(layer, x)

    def branch_scale(self, layer: int, branch: int) -> Tensor | None:
        return self.trunk.branch_scale(layer, branch)

    def head_outputs(self, block: Any) -> nn.Module | None:
        return self.trunk.head_outputs(block)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return self.trunk.mlp(block, x)

    def run_block(self, layer: int, at: At, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.trunk.run_block(layer, at, x, *args, **kwargs)

    def arguments(self, layer: int) -> dict[str, Any]:
        return self.trunk.arguments(layer)

    def readout(self) -> Readout | None:
        found = self.trunk.readout()
        if found is None or hasattr(self.visual.head, "mlp"):
            return None
        linear = getattr(self.visual.head, "proj", None) or self.visual.trunk.head
        if not isinstance(linear, nn.Linear):
            return found
        offset = None if linear.bias is None else linear.bias.detach()
        return Readout(found.weight, found.bias, found.eps, linear.weight.detach().T, offset)

    def transform(self) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
        cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(self.model))
        return image_transform_v2(cfg, is_train=False), tuple(cfg.mean), tuple(cfg.std)

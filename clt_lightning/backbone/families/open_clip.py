"""open_clip's own Vision Transformers."""

from __future__ import annotations

from typing import Any

import open_clip
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from clt_lightning.backbone.attention import head_outputs, is_plain
from clt_lightning.backbone.attention_parts import AttentionParts, Linear, first_attends, linear_parts, norm_parts
from clt_lightning.backbone.families.base import At, Family, Readout, square
from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TokenLayout

_BLOCKS = (ResidualAttentionBlock, CustomResidualAttentionBlock)


class OpenClipViT(Family):
    """The image tower of an `open_clip.CLIP`, `CustomTextCLIP` or `CoCa`, or such a tower alone."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        visual = self.visual
        self.blocks = list(visual.transformer.resblocks)
        self.d_model = int(visual.transformer.width)
        self.grid = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.tokens = TokenLayout(self.grid[0] * self.grid[1])
        self.image_size = square(visual.image_size, name)
        self.embed_dim = int(visual.ln_post.weight.shape[0] if visual.proj is None else visual.proj.shape[1])
        self.batch_first = bool(getattr(visual.transformer, "batch_first", False))
        over_tokens = visual.attn_pool is None and not visual.final_ln_after_pool
        self.norm = visual.ln_post if over_tokens else None

    @classmethod
    def fits(cls, model: Any) -> bool:
        visual = getattr(model, "visual", model)
        # not a subclass either: its forward may be another one
        return isinstance(visual, VisionTransformer) and all(type(b) in _BLOCKS for b in visual.transformer.resblocks)

    @property
    def visual(self) -> Any:
        return getattr(self.model, "visual", self.model)

    def encode(self, images: Tensor) -> Tensor:
        found = self.visual(images)
        pooled: Tensor = found[0] if isinstance(found, tuple) else found  # CoCa's tower gives its tokens as well
        return pooled

    def after(self, stream: Tensor) -> Tensor:
        pooled = self._pool(stream)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def _pool(self, x: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is None:
            return visual.ln_post(self._one(x)) if visual.final_ln_after_pool else self._one(visual.ln_post(x))
        if getattr(visual, "attn_pool_contrastive", None) is None:
            return self._one(visual.ln_post(visual.attn_pool(x)))
        normed = visual.ln_post(x)
        cascaded = visual.attn_pool_type == "cascade"
        found: Tensor = visual.attn_pool_contrastive(visual.attn_pool(normed) if cascaded else normed)
        return found

    def _one(self, x: Tensor) -> Tensor:
        """One of the tokens, or their mean, as the architecture says."""
        kind = self.visual.pool_type
        return x[:, 1:].mean(1) if kind == "avg" else x[:, 0] if kind == "tok" else x

    def norms(self, block: Any) -> tuple[nn.Module | None, nn.Module | None]:
        return block.ln_1, block.ln_2

    def attention(self, block: Any, x: Tensor, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if hasattr(block, "attention"):  # around torch's MultiheadAttention
            mixed = block.attention(q_x=x, attn_mask=attn_mask)
        else:
            mixed = block.ln_attn(block.attn(x, attn_mask=attn_mask))
        found: Tensor = block.ls_1(mixed)
        return found

    def attention_parts(self, layer: int, name: str) -> AttentionParts:
        attention: Any = self.blocks[layer].attn
        qkv = Linear(attention.in_proj_weight, attention.in_proj_bias)
        if isinstance(attention, nn.MultiheadAttention):
            return AttentionParts(qkv, linear_parts(attention.out_proj), attention.num_heads)
        if getattr(attention, "logit_scale", None) is not None:
            raise UserError(f"'{name}' has attention by scaled cosines: its parts are not supported")
        head_scale = attention.head_scale
        return AttentionParts(
            qkv,
            linear_parts(attention.out_proj),
            attention.num_heads,
            q_norm=norm_parts(name, attention.ln_q),
            k_norm=norm_parts(name, attention.ln_k),
            head_scale=None if head_scale is None else head_scale.flatten(),
            inner_norm=norm_parts(name, attention.ln_inner),
        )

    def attention_at_cls(self, layer: int, x: Tensor) -> Tensor | None:
        block: Any = self.blocks[layer]
        if not hasattr(block, "attention") or not is_plain(block.attn):
            return None
        found: Tensor = block.ls_1(first_attends(self.attention_parts(layer, "tower"), x))
        return found

    def branch_scale(self, layer: int, branch: int) -> Tensor | None:
        return getattr(getattr(self.blocks[layer], f"ls_{branch}"), "gamma", None)

    def head_outputs(self, block: Any) -> nn.Module | None:
        return None if hasattr(block, "attention") else block.attn.out_proj

    def z_width(self, block: Any) -> int | None:
        return int(block.attn.out_proj.in_features)

    def attend(self, block: Any, at: At, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not hasattr(block, "attention") or not at.wants("attn_z"):
            return super().attend(block, at, x, *args, **kwargs)
        # torch's MultiheadAttention keeps its heads' outputs to itself: they are computed beside it, and what an
        # override changes in them is added behind the projection, so that one that changes nothing adds zeros
        z = head_outputs(block.attn, x, kwargs.get("attn_mask"))
        given = at("attn_z", z, lambda: z)
        mixed = block.attention(q_x=x, attn_mask=kwargs.get("attn_mask"))
        if given is not z:
            mixed = mixed + F.linear(given - z, block.attn.out_proj.weight)
        found: Tensor = block.ls_1(mixed)
        return found

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        found: Tensor = block.ls_2(block.mlp(x))
        return found

    def readout(self) -> Readout | None:
        visual = self.visual
        if visual.attn_pool is not None or visual.pool_type != "tok":
            return None
        return Readout.of(visual.ln_post, None if visual.proj is None else visual.proj.detach())

    def transform(self) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
        cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(self.model))
        return image_transform_v2(cfg, is_train=False), tuple(cfg.mean), tuple(cfg.std)

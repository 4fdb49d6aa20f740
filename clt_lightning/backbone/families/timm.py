"""timm's Vision Transformers: plain and distilled ones, DINOv2, SigLIP, MAE; and those with rotary positions (EVA)."""

from __future__ import annotations

from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat  # type: ignore[attr-defined]
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from clt_lightning.backbone.attention_parts import (
    AttentionParts,
    Linear,
    first_attends,
    linear_parts,
    norm_parts,
    stacked,
)
from clt_lightning.backbone.families.base import Family, Readout, square
from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TokenLayout

_PRE_NORM = (Block, EvaBlock)
_ATTENTION = (Attention, AttentionRope, EvaAttention)
_POST_NORM = (ResPostBlock, EvaBlockPostNorm)


class TimmViT(Family):
    """A `VisionTransformer` of timm; its embedding is what `forward_head(..., pre_logits=True)` gives."""

    kind: type[nn.Module] = VisionTransformer

    def __init__(self, model: Any, name: str) -> None:
        self.model = self.trunk = model
        self.blocks = list(self.trunk.blocks)
        # not a subclass either: its forward may be another one
        odd = {type(block).__name__ for block in self.blocks if type(block) not in _PRE_NORM + _POST_NORM}
        if odd:
            raise UserError(
                f"'{name}' has blocks of kind {', '.join(sorted(odd))}, which do not run attention and MLP one after "
                "the other: they cannot be taken apart into sites"
            )
        self.grid = tuple(int(n) for n in self.trunk.patch_embed.grid_size)  # type: ignore[assignment]
        self.image_size = square(self.trunk.patch_embed.img_size, name)
        has_cls = getattr(self.trunk, "cls_token", None) is not None
        registers = int(self.trunk.num_prefix_tokens) - int(has_cls)  # DeiT's distillation token among them
        self.tokens = TokenLayout(self.grid[0] * self.grid[1], has_cls, registers)
        self.d_model = int(self.trunk.embed_dim)
        self.embed_dim = self.d_model
        self.norm = self.trunk.norm

    @classmethod
    def fits(cls, model: Any) -> bool:
        return isinstance(model, cls.kind)

    def encode(self, images: Tensor) -> Tensor:
        return self._pooled(self.trunk.forward_features(images))

    def after(self, stream: Tensor) -> Tensor:
        return self._pooled(self.trunk.norm(stream))

    def _pooled(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.trunk.forward_head(tokens, pre_logits=True)
        if pooled.ndim == 2:
            return pooled
        # a model that was made without pooling: [CLS], or the mean of the patches
        return pooled[:, 0] if self.tokens.has_cls else pooled[:, self.tokens.span("patch")].mean(1)

    def norms(self, block: Any) -> tuple[nn.Module | None, nn.Module | None]:
        return (None, None) if isinstance(block, _POST_NORM) else (block.norm1, block.norm2)

    def attention(self, block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = block.attn(x, *args, **kwargs)
        found: Tensor = block.drop_path1(block.norm1(y) if isinstance(block, _POST_NORM) else self._scaled(block, 1, y))
        return found

    def attention_parts(self, layer: int, name: str) -> AttentionParts:
        attention: Any = self.blocks[layer].attn
        if getattr(attention, "gate", None) is not None or getattr(attention, "num_kv_heads", attention.num_heads) != (
            attention.num_heads
        ):
            raise UserError(f"'{name}' has gated or grouped attention: its parts are not supported")
        return AttentionParts(
            _qkv(attention),
            linear_parts(attention.proj),
            attention.num_heads,
            q_norm=norm_parts(name, attention.q_norm),
            k_norm=norm_parts(name, attention.k_norm),
            scale=float(attention.scale),
            inner_norm=norm_parts(name, attention.norm),
            rope=self._rope(layer, attention),
        )

    def attention_at_cls(self, layer: int, x: Tensor) -> Tensor | None:
        block: Any = self.blocks[layer]
        if isinstance(block, _POST_NORM) or not self.tokens.has_cls or type(block.attn) not in _ATTENTION:
            return None
        try:
            parts = self.attention_parts(layer, "tower")
        except UserError:  # an attention of another form
            return None
        found: Tensor = block.drop_path1(self._scaled(block, 1, first_attends(parts, x)))
        return found

    def branch_scale(self, layer: int, branch: int) -> Tensor | None:
        return getattr(getattr(self.blocks[layer], f"ls{branch}", None), "gamma", None)

    def _rope(self, layer: int, attention: Any) -> Any:
        turns = self.arguments(layer).get("rope")
        if turns is None:
            return None
        prefix, half = self.tokens.n_prefix, bool(getattr(attention, "rotate_half", False))

        def rotate(x: Tensor) -> Tensor:
            turned = apply_rot_embed_cat(x[:, :, prefix:], turns.to(x), half=half)
            return torch.cat([x[:, :, :prefix], turned], 2)

        return rotate

    def head_outputs(self, block: Any) -> nn.Module | None:
        proj = getattr(block.attn, "proj", None)
        return proj if isinstance(proj, nn.Linear) else None

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        y = block.mlp(x)
        found: Tensor = block.drop_path2(block.norm2(y) if isinstance(block, _POST_NORM) else self._scaled(block, 2, y))
        return found

    def _scaled(self, block: Any, branch: int, y: Tensor) -> Tensor:
        scaled: Tensor = getattr(block, f"ls{branch}")(y)
        return scaled

    def readout(self) -> Readout | None:
        trunk = self.trunk
        if isinstance(trunk, VisionTransformerDistilled) or not self.tokens.has_cls:
            return None
        if trunk.global_pool not in ("token", "") or getattr(trunk, "attn_pool", None) is not None:
            return None
        normed, pooled = isinstance(trunk.norm, nn.Identity), isinstance(trunk.fc_norm, nn.Identity)
        if normed == pooled:  # a norm both before and after pooling, or none
            return None
        return Readout.of(trunk.fc_norm if normed else trunk.norm)

    def classifier(self) -> nn.Linear | None:
        head = self.trunk.head
        distilled = isinstance(self.trunk, VisionTransformerDistilled)  # two heads, of two tokens
        return head if isinstance(head, nn.Linear) and not distilled else None

    def transform(self) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
        cfg = resolve_model_data_config(self.trunk)  # type: ignore[no-untyped-call]
        cfg["input_size"] = (3, self.image_size, self.image_size)
        return create_transform(**cfg, is_training=False), tuple(cfg["mean"]), tuple(cfg["std"])


class TimmEva(TimmViT):
    """An `Eva` of timm: EVA02, DINOv3, Perception Encoder. Blocks take rotary positions, and scale by a bare gamma."""

    kind = Eva

    def _scaled(self, block: Any, branch: int, y: Tensor) -> Tensor:
        gamma = getattr(block, f"gamma_{branch}")
        return y if gamma is None else gamma * y

    def branch_scale(self, layer: int, branch: int) -> Tensor | None:
        gamma: Tensor | None = getattr(self.blocks[layer], f"gamma_{branch}", None)
        return gamma

    def arguments(self, layer: int) -> dict[str, Any]:
        rope = self.trunk.rope
        if rope is None:
            return {"rope": None}
        fixed = hasattr(rope, "feat_shape") and not self.trunk.dynamic_img_size
        whole = rope.get_embed() if fixed else rope.get_embed(shape=self.grid)
        return {"rope": whole[layer] if getattr(self.trunk, "rope_mixed", False) else whole}


def _qkv(attention: Any) -> Linear:
    if attention.qkv is None:
        return stacked([attention.q_proj, attention.k_proj, attention.v_proj])
    bias = attention.qkv.bias
    if bias is None and getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return Linear(attention.qkv.weight, bias)

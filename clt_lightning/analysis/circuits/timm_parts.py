"""The parts of timm's Vision Transformers, plain and with rotary positions (`Block`, `EvaBlock`)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Mlp, RmsNorm, apply_rot_embed_cat  # type: ignore[attr-defined]
from torch import Tensor, nn

from clt_lightning.analysis.circuits.parts import (
    AttentionParts,
    BlockParts,
    Linear,
    MlpParts,
    Norm,
    ReadOutParts,
    TowerParts,
)
from clt_lightning.backbone import Backbone
from clt_lightning.backbone.families.timm import TimmEva, TimmViT
from clt_lightning.core.errors import UserError


def timm_parts(backbone: Backbone, family: TimmViT) -> TowerParts:
    """The parts of a `FrozenViT` of timm.

    Args:
        backbone: the backbone.
        family: its family.

    Raises:
        UserError: post-norm blocks, gated attention or MLPs, or another norm than LayerNorm and RMSNorm.
    """
    return TowerParts(
        name=backbone.name,
        embed=_Stem(family.trunk),
        blocks=[_block(backbone.name, family, layer) for layer in range(len(family.blocks))],
        read_out=_read_out(family),
        n_prefix=family.tokens.n_prefix,
        grid=family.grid,
    )


class _Stem:
    """Images to the entry of block 0, in the images' own type: the trunk without its blocks and its end."""

    def __init__(self, trunk: Any) -> None:
        self._trunk = trunk
        self._of: dict[torch.dtype, Any] = {}

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype not in self._of:
            bare: dict[int, nn.Module] = {id(self._trunk.blocks): nn.Sequential(), id(self._trunk.norm): nn.Identity()}
            self._of[images.dtype] = copy.deepcopy(self._trunk, bare).to(images.dtype)
        result: Tensor = self._of[images.dtype].forward_features(images)
        return result


def _norm(name: str, module: nn.Module) -> Norm | None:
    found: Any = module
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.LayerNorm):
        return Norm(found.weight, found.bias, found.eps)
    if isinstance(module, RmsNorm):
        return Norm(found.weight, None, found.eps, centred=False)
    raise UserError(f"'{name}' has a norm of class {type(module).__name__}: its circuits are not supported")


def _block(name: str, family: TimmViT, layer: int) -> BlockParts:
    block: Any = family.blocks[layer]
    before, after = (None if norm is None else _norm(name, norm) for norm in family.norms(block))
    if before is None or after is None:
        raise UserError(f"'{name}' has blocks that normalise after a branch: their circuits are not supported")
    if type(block.mlp) is not Mlp:
        raise UserError(f"'{name}' has an MLP of class {type(block.mlp).__name__}: its circuits are not supported")
    mlp: Any = block.mlp
    scales = [_scale(family, block, branch) for branch in (1, 2)]
    return BlockParts(
        norm_1=before,
        attention=_attention(name, family, layer),
        scale_1=scales[0],
        norm_2=after,
        mlp=MlpParts(_linear(mlp.fc1), _linear(mlp.fc2), mlp.act, _norm(name, mlp.norm)),
        scale_2=scales[1],
    )


def _scale(family: TimmViT, block: Any, branch: int) -> Tensor | None:
    if isinstance(family, TimmEva):
        gamma: Tensor | None = getattr(block, f"gamma_{branch}")
        return gamma
    return getattr(getattr(block, f"ls{branch}"), "gamma", None)


def _linear(module: nn.Linear) -> Linear:
    return Linear(module.weight, module.bias)


def _attention(name: str, family: TimmViT, layer: int) -> AttentionParts:
    attention: Any = family.blocks[layer].attn
    if getattr(attention, "gate", None) is not None or getattr(attention, "num_kv_heads", attention.num_heads) != (
        attention.num_heads
    ):
        raise UserError(f"'{name}' has gated or grouped attention: its circuits are not supported")
    return AttentionParts(
        _qkv(attention),
        _linear(attention.proj),
        attention.num_heads,
        q_norm=_norm(name, attention.q_norm),
        k_norm=_norm(name, attention.k_norm),
        scale=float(attention.scale),
        inner_norm=_norm(name, attention.norm),
        rope=_rope(family, layer, attention),
    )


def _qkv(attention: Any) -> Linear:
    if attention.qkv is not None:
        bias = attention.qkv.bias
        if bias is None and getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        return Linear(attention.qkv.weight, bias)
    parts = attention.q_proj, attention.k_proj, attention.v_proj
    biases = [torch.zeros_like(p.weight[:, 0]) if p.bias is None else p.bias for p in parts]
    return Linear(torch.cat([p.weight for p in parts]), torch.cat(biases))


def _rope(family: TimmViT, layer: int, attention: Any) -> Any:
    turns = family.arguments(layer).get("rope")
    if turns is None:
        return None
    prefix, half = family.tokens.n_prefix, bool(getattr(attention, "rotate_half", False))

    def rotate(x: Tensor) -> Tensor:
        turned = apply_rot_embed_cat(x[:, :, prefix:], turns.to(x), half=half)
        return torch.cat([x[:, :, :prefix], turned], 2)

    return rotate


def _read_out(family: TimmViT) -> ReadOutParts:
    trunk = family.trunk
    readout, tokens = family.readout(), family.tokens
    weight = next(family.model.parameters())
    pool = torch.zeros(tokens.n_positions, dtype=weight.dtype, device=weight.device)
    if readout is not None:
        pool[0] = 1
        return ReadOutParts(pool, Norm(readout.weight, readout.bias, readout.eps))
    own, after = _norm("", trunk.norm), _norm("", trunk.fc_norm)
    one = own is None or after is None
    plain = one and getattr(trunk, "attn_pool", None) is None and not getattr(trunk, "pool_include_prefix", False)
    if plain and trunk.global_pool == "avg":
        pool[tokens.span("patch")] = 1 / tokens.n_patches
        return ReadOutParts(pool, after if own is None else own, norm_after_pool=own is None)
    return ReadOutParts(pool + 1, other=_End(family))


class _End:
    """The read-out by the model's own modules, in the type of what it is given."""

    def __init__(self, family: TimmViT) -> None:
        self._family = family
        self._of: dict[torch.dtype, TimmViT] = {}

    def __call__(self, stream: Tensor) -> Tensor:
        if stream.dtype not in self._of:
            bare = {id(self._family.trunk.blocks): nn.Sequential()}
            made = copy.copy(self._family)
            made.trunk = copy.deepcopy(self._family.trunk, bare).to(stream.dtype)
            self._of[stream.dtype] = made
        return self._of[stream.dtype].after(stream)

"""The parts of an image tower of open_clip's own (`ResidualAttentionBlock`, `CustomResidualAttentionBlock`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clt_lightning.analysis.circuits.parts import BlockParts, MlpParts, ReadOutParts, TowerParts
from clt_lightning.analysis.circuits.timm_parts import timm_parts
from clt_lightning.backbone.attention_parts import Linear, Norm, linear_parts, norm_parts
from clt_lightning.backbone.families.open_clip import OpenClipViT
from clt_lightning.backbone.families.timm import TimmViT
from clt_lightning.core.errors import UserError


def parts_of(clip: Any) -> TowerParts:
    """The parts of a backbone's image tower.

    Args:
        clip: a `FrozenCLIP` with a tower of open_clip's own, a `FrozenViT` of timm's, or a backbone with a method
            `circuit_parts()`.

    Raises:
        UserError: an architecture whose parts are not known.
    """
    own = getattr(clip, "circuit_parts", None)
    if callable(own):
        found: TowerParts = own()
        return found
    family = getattr(clip, "family", None)
    if isinstance(family, TimmViT):
        return timm_parts(clip, family)
    if not isinstance(family, OpenClipViT):
        raise UserError(
            f"'{clip.name}' is of the family {type(family).__name__}: circuits are known of open_clip's own towers "
            "and of timm's"
        )
    visual = clip.model.visual
    return TowerParts(
        name=clip.name,
        embed=_embedding(clip.name, visual),
        blocks=[_block(clip, layer) for layer in range(clip.n_layers)],
        read_out=_read_out(clip.name, visual),
        n_prefix=1,
        grid=clip.grid,
    )


def _needed(name: str, module: nn.Module) -> Norm:
    # an identity in the place of a norm: centred, scaled by 1 and so of no use here; no ViT of open_clip's has it
    norm = norm_parts(name, module)
    if norm is None:
        raise UserError("a block without a norm before its attention or MLP is not known to the linear tower")
    return norm


def _block(clip: Any, layer: int) -> BlockParts:
    name, family, block = clip.name, clip.family, clip.blocks[layer]
    return BlockParts(
        norm_1=_needed(name, block.ln_1),
        attention=family.attention_parts(layer, name),
        post_attention=norm_parts(name, getattr(block, "ln_attn", nn.Identity())),
        scale_1=family.branch_scale(layer, 1),
        norm_2=_needed(name, block.ln_2),
        mlp=MlpParts(
            up=linear_parts(block.mlp.c_fc),
            down=linear_parts(block.mlp.c_proj),
            activation=block.mlp.gelu,
            norm=norm_parts(name, getattr(block.mlp, "ln", nn.Identity())),
        ),
        scale_2=family.branch_scale(layer, 2),
    )


def _embedding(name: str, visual: Any) -> Any:
    norm = norm_parts(name, visual.ln_pre)
    conv, cls, positions = visual.conv1, visual.class_embedding, visual.positional_embedding

    def embed(images: Tensor) -> Tensor:
        bias = None if conv.bias is None else conv.bias.to(images)
        patches = F.conv2d(images, conv.weight.to(images), bias, stride=conv.stride).flatten(2).transpose(1, 2)
        first = cls.to(images).expand(len(images), 1, -1)
        stream = torch.cat([first, patches], 1) + positions.to(images)
        if norm is None:
            result: Tensor = stream
            return result
        kept = Norm(
            None if norm.weight is None else norm.weight.to(images),
            None if norm.bias is None else norm.bias.to(images),
            norm.eps,
        )
        return kept(stream)

    return embed


def _read_out(name: str, visual: Any) -> ReadOutParts:
    positions = len(visual.positional_embedding)
    pool = torch.zeros(positions, dtype=torch.float64)  # a mean over patches is no float32
    projection = None if visual.proj is None else Linear(visual.proj.T)
    if getattr(visual, "attn_pool", None) is not None:
        return ReadOutParts(pool + 1.0, other=_whole(visual))
    if visual.pool_type == "avg":
        pool[1:] = 1.0 / (positions - 1)
    elif visual.pool_type == "tok":
        pool[0] = 1.0
    else:
        raise UserError(f"a tower of pool_type {visual.pool_type!r} gives no single embedding to explain")
    return ReadOutParts(pool, norm_parts(name, visual.ln_post), bool(visual.final_ln_after_pool), projection)


def _whole(visual: Any) -> Any:
    """The read-out by the model's own modules, in the type of what it is given."""

    def run(stream: Tensor) -> Tensor:
        import copy

        own: Any = visual
        if visual.proj is not None and visual.proj.dtype != stream.dtype:
            own = copy.copy(visual)
            own._modules = {
                name: None if module is None else copy.deepcopy(module).to(stream.dtype)
                for name, module in visual._modules.items()
                if name in ("ln_post", "attn_pool", "attn_pool_contrastive")
            }
            own._parameters = {name: p if p is None else p.to(stream.dtype) for name, p in visual._parameters.items()}
        pooled = own._pool(stream)[0]
        result: Tensor = pooled if own.proj is None else pooled @ own.proj
        return result

    return run

"""The parts of timm's Vision Transformers, plain and with rotary positions (`Block`, `EvaBlock`)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Mlp  # type: ignore[attr-defined]
from torch import Tensor, nn

from clt_lightning.analysis.circuits.parts import BlockParts, MlpParts, ReadOutParts, TowerParts
from clt_lightning.backbone import Backbone
from clt_lightning.backbone.attention_parts import Norm, linear_parts, norm_parts
from clt_lightning.backbone.families.timm import TimmViT
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


def _block(name: str, family: TimmViT, layer: int) -> BlockParts:
    block: Any = family.blocks[layer]
    before, after = (None if norm is None else norm_parts(name, norm) for norm in family.norms(block))
    if before is None or after is None:
        raise UserError(f"'{name}' has blocks that normalise after a branch: their circuits are not supported")
    if type(block.mlp) is not Mlp:
        raise UserError(f"'{name}' has an MLP of class {type(block.mlp).__name__}: its circuits are not supported")
    mlp: Any = block.mlp
    scales = [family.branch_scale(layer, branch) for branch in (1, 2)]
    return BlockParts(
        norm_1=before,
        attention=family.attention_parts(layer, name),
        scale_1=scales[0],
        norm_2=after,
        mlp=MlpParts(linear_parts(mlp.fc1), linear_parts(mlp.fc2), mlp.act, norm_parts(name, mlp.norm)),
        scale_2=scales[1],
    )


def _read_out(family: TimmViT) -> ReadOutParts:
    trunk = family.trunk
    readout, tokens = family.readout(), family.tokens
    weight = next(family.model.parameters())
    pool = torch.zeros(tokens.n_positions, dtype=weight.dtype, device=weight.device)
    if readout is not None:
        pool[0] = 1
        return ReadOutParts(pool, Norm(readout.weight, readout.bias, readout.eps))
    own, after = norm_parts("", trunk.norm), norm_parts("", trunk.fc_norm)
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

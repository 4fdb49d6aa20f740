"""Every layout of Vision Transformers that is supported, small and with random weights; docs/backbones.md shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from clt_lightning.core.tokens import TokenLayout

from . import layouts

Hand = Callable[[Any], dict[str, tuple[nn.Module, str, Callable[[Tensor], Tensor] | None]]]


@dataclass(frozen=True)
class Row:
    """One supported layout.

    Attributes:
        what: the model, in words.
        names: an example, as a user would write it.
        make: a small one.
        hand: of a block: by site the module whose input or output it is, and what is still done to it.
        tokens: which positions are what.
        own: the library's own embedding.
        pooling: how the embedding comes about.
    """

    what: str
    names: str
    make: Callable[[], nn.Module]
    hand: Hand
    tokens: TokenLayout
    own: Callable[[Any, Tensor], Tensor]
    pooling: str


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    sizes = {"img_size": 32, "patch_size": 8} | options
    return lambda: timm.create_model(name, pretrained=False, embed_dim=32, depth=3, num_heads=2, **sizes)


def _own_open_clip(**vision: Any) -> Callable[[], nn.Module]:
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16} | vision
    text = {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}
    return lambda: open_clip.CLIP(embed_dim=24, vision_cfg=sizes, text_cfg=text)


def _open_clip_timm(name: str, pool: str, proj: str | None, **options: Any) -> Callable[[], nn.Module]:
    """An open_clip model with a small tower of timm's in the place of the one of this name."""

    def make() -> nn.Module:
        whole = _own_open_clip()()
        trunk = _timm(name, num_classes=24 if proj is None else 0, global_pool=pool, **options)()
        tower = TimmModel.__new__(TimmModel)
        nn.Module.__init__(tower)
        tower.trunk, tower.image_size = trunk, (32, 32)
        tower.head = nn.Sequential(nn.Linear(32, 24)) if proj == "linear" else nn.Sequential()
        whole.visual = tower
        return whole

    return make


def heads_by_hand(attention: Any) -> tuple[nn.Module, str, Callable[[Tensor], Tensor] | None]:
    """What all heads of open_clip's attention give; torch's own has no module behind them."""
    if not isinstance(attention, nn.MultiheadAttention):
        return attention.out_proj, "in", None

    def heads(x: Tensor) -> Tensor:
        n, p, d = x.shape
        qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        h = attention.num_heads
        q, k, v = (part.unflatten(2, (h, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        found: Tensor = ((q @ k.transpose(2, 3) * (d // h) ** -0.5).softmax(-1) @ v).transpose(1, 2).reshape(n, p, d)
        return found

    return attention, "in", heads


def open_clip_parts(block: Any) -> Any:
    return {
        "resid_pre": (block, "in", None),
        "attn_in": (block.ln_1, "out", None),
        "attn_z": heads_by_hand(block.attn),
        "attn_out": (block.ls_1, "out", None),
        "resid_mid": (block.ln_2, "in", None),
        "mlp_in": (block.ln_2, "out", None),
        "mlp_out": (block.ls_2, "out", None),
        "resid_post": (block, "out", None),
    }


def timm_parts(block: Any) -> Any:
    return {
        "resid_pre": (block, "in", None),
        "attn_in": (block.norm1, "out", None),
        "attn_z": (block.attn.proj, "in", None),
        "attn_out": (block.ls1, "out", None),
        "resid_mid": (block.norm2, "in", None),
        "mlp_in": (block.norm2, "out", None),
        "mlp_out": (block.ls2, "out", None),
        "resid_post": (block, "out", None),
    }


def eva_parts(block: Any) -> Any:
    def scaled(gamma: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        return None if gamma is None else lambda y: gamma * y

    return timm_parts_of_eva(block) | {
        "attn_out": (block.attn, "out", scaled(block.gamma_1)),
        "mlp_out": (block.mlp, "out", scaled(block.gamma_2)),
    }


def timm_parts_of_eva(block: Any) -> Any:
    return {
        "resid_pre": (block, "in", None),
        "attn_in": (block.norm1, "out", None),
        "attn_z": (block.attn.proj, "in", None),
        "resid_mid": (block.norm2, "in", None),
        "mlp_in": (block.norm2, "out", None),
        "resid_post": (block, "out", None),
    }


def post_norm_parts(block: Any) -> Any:
    return {
        "resid_pre": (block, "in", None),
        "attn_in": (block.attn, "in", None),
        "attn_z": (block.attn.proj, "in", None),
        "attn_out": (block.norm1, "out", None),
        "resid_mid": (block.mlp, "in", None),
        "mlp_in": (block.mlp, "in", None),
        "mlp_out": (block.norm2, "out", None),
        "resid_post": (block, "out", None),
    }


def hugging_face_parts(block: Any) -> Any:
    def child(*names: str) -> Any:
        return next(getattr(block, name) for name in names if hasattr(block, name))

    before = child("layernorm_before", "norm1", "layer_norm1")
    after = child("layernorm_after", "norm2", "layer_norm2")
    scale = getattr(block, "layer_scale1", None)
    old = hasattr(block, "output")
    return {
        "resid_pre": (block, "in", None),
        "attn_in": (before, "out", None),
        "attn_z": (child("attention", "self_attn").o_proj, "in", None),
        "attn_out": (child("layer_scale1", "attention", "self_attn"), "out", None if scale else lambda y: y),
        "resid_mid": (after, "in", None),
        "mlp_in": (after, "out", None),
        "mlp_out": (block.output.dense if old else child("layer_scale2", "mlp"), "out", None),
        "resid_post": (block, "out", None),
    }


def _pre_logits(model: Any, images: Tensor) -> Tensor:
    result: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return result


def _encode_image(model: Any, images: Tensor) -> Tensor:
    result: Tensor = model.encode_image(images, normalize=False)
    return result


def _pooled(model: Any, images: Tensor) -> Tensor:
    out = model(images)
    return out if isinstance(out, Tensor) else out.pooler_output


def _first(model: Any, images: Tensor) -> Tensor:
    result: Tensor = model(images).last_hidden_state[:, 0]
    return result


def _mean(model: Any, images: Tensor) -> Tensor:
    result: Tensor = model(images).last_hidden_state.mean(1)
    return result


PLAIN = TokenLayout(16)
NO_CLS = TokenLayout(16, has_cls=False)

ROWS = (
    Row(
        "open_clip's own ViT",
        'FrozenCLIP("ViT-B-32-quickgelu", "openai")',
        _own_open_clip(ls_init_value=0.5),
        open_clip_parts,
        PLAIN,
        _encode_image,
        "[CLS]",
    ),
    Row(
        "open_clip's custom blocks",
        'FrozenCLIP("ViT-H-14-CLIPA", None)',
        _own_open_clip(qk_norm=True, scale_fc=True, pool_type="avg", final_ln_after_pool=True),
        open_clip_parts,
        PLAIN,
        _encode_image,
        "mean of patches",
    ),
    Row(
        "CoCa's attentional pooling",
        'FrozenCLIP("coca_ViT-B-32", None)',
        _own_open_clip(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4),
        open_clip_parts,
        PLAIN,
        _encode_image,
        "attention",
    ),
    Row(
        "SigLIP and SigLIP 2 in open_clip",
        'FrozenCLIP("ViT-B-16-SigLIP", "webli")',
        _open_clip_timm("vit_base_patch16_siglip_224", "map", "none"),
        timm_parts,
        NO_CLS,
        _encode_image,
        "attention",
    ),
    Row(
        "EVA02-CLIP in open_clip",
        'FrozenCLIP("EVA02-B-16", "merged2b_s8b_b131k")',
        _open_clip_timm("eva02_base_patch16_clip_224", "token", None),
        eva_parts,
        PLAIN,
        _encode_image,
        "[CLS]",
    ),
    Row(
        "Perception Encoder in open_clip",
        'FrozenCLIP("PE-Core-B-16", "meta")',
        _open_clip_timm("vit_pe_core_tiny_patch16_384", "map", "linear"),
        eva_parts,
        PLAIN,
        _encode_image,
        "attention",
    ),
    Row(
        "ViT",
        'FrozenViT("vit_base_patch16_224.augreg_in21k_ft_in1k")',
        _timm("vit_small_patch16_224"),
        timm_parts,
        PLAIN,
        _pre_logits,
        "[CLS]",
    ),
    Row(
        "DeiT",
        'FrozenViT("deit_base_patch16_224.fb_in1k")',
        _timm("deit_tiny_patch16_224"),
        timm_parts,
        PLAIN,
        _pre_logits,
        "[CLS]",
    ),
    Row(
        "distilled DeiT",
        'FrozenViT("deit_base_distilled_patch16_224.fb_in1k")',
        _timm("deit_tiny_distilled_patch16_224"),
        timm_parts,
        TokenLayout(16, n_registers=1),
        _pre_logits,
        "[CLS] and distillation token",
    ),
    Row(
        "MAE, mean of patches",
        'FrozenViT("vit_base_patch16_224.mae")',
        _timm("vit_base_patch16_224", global_pool="avg"),
        timm_parts,
        PLAIN,
        _pre_logits,
        "mean of patches",
    ),
    Row(
        "DINOv2",
        'FrozenViT("vit_base_patch14_dinov2.lvd142m")',
        _timm("vit_small_patch14_dinov2"),
        timm_parts,
        PLAIN,
        _pre_logits,
        "[CLS]",
    ),
    Row(
        "DINOv2 with registers",
        'FrozenViT("vit_base_patch14_reg4_dinov2.lvd142m")',
        _timm("vit_small_patch14_reg4_dinov2"),
        timm_parts,
        TokenLayout(16, n_registers=4),
        _pre_logits,
        "[CLS]",
    ),
    Row(
        "DINOv3",
        'FrozenViT("vit_base_patch16_dinov3.lvd1689m")',
        _timm("vit_small_patch16_dinov3"),
        eva_parts,
        TokenLayout(16, n_registers=4),
        _pre_logits,
        "mean of patches",
    ),
    Row(
        "SigLIP's tower",
        'FrozenViT("vit_base_patch16_siglip_224.webli")',
        _timm("vit_base_patch16_siglip_224"),
        timm_parts,
        NO_CLS,
        _pre_logits,
        "attention",
    ),
    Row(
        "CLIP's tower",
        'FrozenViT("vit_base_patch16_clip_quickgelu_224.openai")',
        _timm("vit_base_patch16_clip_quickgelu_224"),
        timm_parts,
        PLAIN,
        _pre_logits,
        "[CLS]",
    ),
    Row(
        "EVA02",
        'FrozenViT("eva02_base_patch14_448.mim_in22k_ft_in22k_in1k")',
        _timm("eva02_base_patch14_224"),
        eva_parts,
        PLAIN,
        _pre_logits,
        "mean of patches",
    ),
    Row(
        "EVA's post-norm blocks",
        'FrozenViT("eva02_enormous_patch14_clip_224.laion2b")',
        _timm("eva02_enormous_patch14_clip_224"),
        post_norm_parts,
        PLAIN,
        _pre_logits,
        "[CLS]",
    ),
    Row(
        "ViT with rotary positions of each layer",
        'FrozenViT("vit_base_patch16_rope_mixed_224.naver_in1k")',
        _timm("vit_small_patch16_rope_mixed_224"),
        eva_parts,
        PLAIN,
        _pre_logits,
        "[CLS]",
    ),
    Row(
        "registers, no [CLS], RMSNorm",
        'FrozenViT("vit_little_patch16_reg1_gap_256.sbb_in12k_ft_in1k")',
        _timm("test_vit4"),
        timm_parts,
        TokenLayout(16, has_cls=False, n_registers=1),
        _pre_logits,
        "mean of patches",
    ),
    Row(
        "transformers' ViT",
        "FrozenViT.from_model(transformers.ViTModel.from_pretrained(...))",
        lambda: layouts.Tower(layouts.NewViTLayer, nested="layers"),
        hugging_face_parts,
        PLAIN,
        _first,
        "[CLS]",
    ),
    Row(
        "transformers' ViT, before release 5",
        "FrozenViT.from_model(transformers.DeiTModel.from_pretrained(...))",
        lambda: layouts.Tower(layouts.OldViTLayer),
        hugging_face_parts,
        PLAIN,
        _first,
        "[CLS]",
    ),
    Row(
        "transformers' Dinov2 with registers",
        "FrozenViT.from_model(transformers.Dinov2WithRegistersModel.from_pretrained(...))",
        lambda: layouts.Tower(layouts.Dinov2Layer, registers=4),
        hugging_face_parts,
        TokenLayout(16, n_registers=4),
        _first,
        "[CLS]",
    ),
    Row(
        "registers after the patches",
        "FrozenViT.from_model(module, tokens=TokenLayout(..., registers_last=True))",
        lambda: layouts.Tower(layouts.NewViTLayer, registers=3, registers_last=True),
        hugging_face_parts,
        TokenLayout(16, n_registers=3, registers_last=True),
        _first,
        "[CLS]",
    ),
    Row(
        "transformers' CLIP",
        "FrozenViT.from_model(transformers.CLIPVisionModelWithProjection.from_pretrained(...))",
        lambda: layouts.WithProjection(
            layouts.Tower(layouts.CLIPEncoderLayer, "class_embedding", nested="encoder.layers", post="post_layernorm")
        ),
        hugging_face_parts,
        PLAIN,
        _pooled,
        "[CLS]",
    ),
    Row(
        "transformers' SigLIP",
        "FrozenViT.from_model(transformers.SiglipVisionModel.from_pretrained(...))",
        lambda: layouts.Tower(layouts.CLIPEncoderLayer, None, nested="encoder.layers", post="post_layernorm"),
        hugging_face_parts,
        NO_CLS,
        _mean,
        "attention, or mean of patches",
    ),
)


def make(row: Row, seed: int = 0) -> nn.Module:
    """The small model, none of its weights at a trivial value."""
    torch.manual_seed(seed)
    model = row.make().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def doc_table() -> str:
    """The table of docs/backbones.md."""
    lines = ["| model | for example | [CLS] | registers | embedding from |", "|---|---|---|---|---|"]
    for row in ROWS:
        cls, registers = "yes" if row.tokens.has_cls else "no", row.tokens.n_registers or ""
        lines.append(f"| {row.what} | `{row.names}` | {cls} | {registers} | {row.pooling} |")
    return "\n".join(lines)

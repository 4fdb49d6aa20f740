"""The numbers of a block's attention make what the block itself adds, in every supported layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clt_lightning.backbone.attention_parts import attention_pattern, values
from clt_lightning.backbone.families.hugging_face import HuggingFaceViT
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.core.errors import UserError
from tests.backbone.models import ROWS, Row, make


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_patterns_and_values_make_the_heads_outputs(row: Row) -> None:
    vit = FrozenViT.from_model(make(row).double())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = vit.read(images, ("attn_in", "attn_z", "attn_out"))
    if isinstance(vit.family, HuggingFaceViT):
        with pytest.raises(UserError, match="of the family HuggingFaceViT, whose attention's parts are not supported"):
            vit.attention_parts(0)
        return
    for layer in range(vit.n_layers):
        parts = vit.attention_parts(layer)
        x = found["attn_in"][layer].unflatten(0, (2, vit.n_positions))
        heads = attention_pattern(parts, x) @ values(parts, x)
        if parts.head_scale is not None:
            heads = heads * parts.head_scale[:, None, None]
        z = heads.transpose(1, 2).flatten(2)
        z = z if parts.inner_norm is None else parts.inner_norm(z)
        torch.testing.assert_close(z.flatten(0, 1), found["attn_z"][layer], rtol=1e-9, atol=1e-9)
        out = F.linear(z, parts.out.weight, parts.out.bias).flatten(0, 1)
        scale = vit.family.branch_scale(layer, 1)
        out = out if scale is None else out * scale
        norm_behind = row.what in ("open_clip's custom blocks", "EVA's post-norm blocks")
        if not norm_behind:
            torch.testing.assert_close(out, found["attn_out"][layer], rtol=1e-9, atol=1e-9)
        at_cls = vit.family.attention_at_cls(layer, x)
        assert (at_cls is None) == (norm_behind or not vit.has_cls)
        if at_cls is not None:
            whole = found["attn_out"][layer].unflatten(0, (2, vit.n_positions))
            torch.testing.assert_close(at_cls, whole[:, :1], rtol=1e-9, atol=1e-9)

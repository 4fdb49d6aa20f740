"""The linear tower of timm's families: its parts add up to the model's own embedding."""

from __future__ import annotations

import pytest
import torch

import clt_lightning as cl
from clt_lightning.analysis.circuits.forward import see
from clt_lightning.analysis.circuits.image_model import model_of_image
from clt_lightning.analysis.circuits.open_clip_parts import parts_of
from clt_lightning.backbone.attention_parts import cast
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.core.errors import UserError
from tests.backbone.models import ROWS, Row, make

KNOWN = (
    *("open_clip's own ViT", "open_clip's custom blocks", "CoCa's attentional pooling"),
    *("ViT", "DeiT", "distilled DeiT", "MAE, mean of patches", "DINOv2", "DINOv2 with registers", "DINOv3"),
    *("SigLIP's tower", "CLIP's tower", "ViT with rotary positions of each layer", "registers, no [CLS], RMSNorm"),
)


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_the_parts_add_up(row: Row) -> None:
    vit = FrozenViT.from_model(make(row).double())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if row.what not in KNOWN:
        with pytest.raises(UserError, match=r"not supported|circuits are known of"):
            parts_of(vit)
        return
    parts = cast(parts_of(vit), torch.float64, "cpu")
    found = see(parts, parts.embed(images)).embedding
    torch.testing.assert_close(found, vit.encode_image(images, normalize=False), rtol=1e-10, atol=1e-10)
    assert parts.n_positions == row.tokens.n_positions


def test_a_transcoder_that_stands_elsewhere() -> None:
    vit = FrozenViT.from_model(make(ROWS[6]))
    sae = cl.CrossLayerTranscoder(3, 32, 48, cl.TopK(4), "sae", sites=cl.Sites("resid_post"))
    with pytest.raises(UserError, match="in the place of all MLPs: this one rebuilds resid_post"):
        model_of_image(vit, sae, torch.zeros(3, 32, 32))

"""Sparse attention in the place of a backbone's own, alone and beside a transcoder."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.backbone import Backbone
from clt_lightning.backbone.attention_parts import attention_pattern
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention
from tests.backbone.models import ROWS, make

ROW = {row.what: row for row in ROWS}
IMAGES = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def time_first() -> Backbone:
    """open_clip's own ViT, whose blocks take `(positions, images, d_model)`."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).double().eval()
    model.visual.transformer.batch_first = False
    for block in model.visual.transformer.resblocks:
        block.attn.batch_first = False
    return FrozenViT.from_model(model)


def backbone(name: str) -> Backbone:
    return time_first() if name == "time first" else FrozenViT.from_model(make(ROW[name]).double())


BACKBONES = ("open_clip's own ViT", "time first", "DINOv2 with registers", "EVA02", "registers, no [CLS], RMSNorm")


def units(seed: int = 0) -> SparseAttention:
    made = SparseAttention(3, 32, 48, 2, cl.TopK(6), seed=seed).double()
    made.b_enc.data += 0.1
    made.b_dec.data += 0.2
    return made


def transcoder(seed: int = 0) -> cl.CrossLayerTranscoder:
    return cl.CrossLayerTranscoder(3, 32, 40, cl.TopK(5), seed=seed).double()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_units_stand_in_the_place_of_attention(name: str) -> None:
    """Against a forward by hand, block by block on the running stream."""
    clip, sparse = backbone(name), units()
    assert clip.batch_first is (name != "time first")
    with replaced(clip, None, attention=sparse) as trace:
        embedding = clip.encode_image(IMAGES, normalize=False)
    with clip.override("attn_out", lambda layer, x, compute: by_hand(clip, sparse, layer, x)):
        expected = clip.encode_image(IMAGES, normalize=False)
    torch.testing.assert_close(embedding, expected, rtol=1e-10, atol=1e-10)
    assert (embedding - clip.encode_image(IMAGES, normalize=False)).abs().max() > 1e-3
    assert sorted(trace.attention) == [0, 1, 2]
    assert trace.attention[1].shape == (1, 3 * clip.n_positions, 48)
    assert trace.attention_hat[2].shape == (3, clip.n_positions, 32)


def by_hand(clip: Backbone, sparse: SparseAttention, layer: int, x: Tensor) -> Tensor:
    pattern = attention_pattern(clip.attention_parts(layer), x)
    rows = x @ sparse.W_enc[layer].T
    moved = torch.stack([pattern[:, f // 24] @ rows[..., f, None] for f in range(48)], -2)[..., 0]
    top = torch.topk(moved + sparse.b_enc[layer], 6, -1)
    codes = torch.zeros_like(moved).scatter(-1, top.indices, top.values.relu())
    return codes @ sparse.W_dec[layer] + sparse.b_dec[layer]


def autoencoder(seed: int = 0) -> cl.CrossLayerTranscoder:
    made = cl.CrossLayerTranscoder(3, 32, 48, cl.TopK(6), "sae", seed=seed, sites=cl.Sites("attn_out")).double()
    for encoder, decoder in zip(made.W_enc, made.W_dec):
        decoder.data[:, 0] = encoder.data
    made.b_dec.data += 0.2
    return made


@pytest.mark.parametrize("name", BACKBONES)
def test_an_autoencoder_reads_what_attention_makes_of_the_running_stream(name: str) -> None:
    clip, sae = backbone(name), autoencoder()

    def by_features(layer: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        own = compute()
        top = torch.topk(own @ sae.W_enc[layer].T, 6, -1)
        codes = torch.zeros(*own.shape[:2], 48, dtype=own.dtype).scatter(-1, top.indices, top.values.relu())
        written: Tensor = codes @ sae.W_dec[layer][:, 0] + sae.b_dec[layer]
        return written

    with replaced(clip, transcoder(), attention=sae) as trace:
        embedding = clip.encode_image(IMAGES, normalize=False)
    with replaced(clip, transcoder()), clip.override("attn_out", by_features):
        expected = clip.encode_image(IMAGES, normalize=False)
    torch.testing.assert_close(embedding, expected, rtol=1e-10, atol=1e-10)
    assert sorted(trace.attention) == sorted(trace.y_hat) == [0, 1, 2]
    assert trace.attention_hat[2].shape == (3, clip.n_positions, 32)


@pytest.mark.parametrize("tokens", ["all", "patch", "cls"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "beside a transcoder"])
@pytest.mark.parametrize("made", [units, autoencoder], ids=["units", "autoencoder"])
def test_with_the_errors_of_the_clean_model_nothing_changes(
    made: Callable[[], AnyAttention], together: bool, tokens: str
) -> None:
    clip = backbone("DINOv2 with registers")
    own = clip.encode_image(IMAGES)
    with replaced(clip, transcoder() if together else None, tokens=tokens, error="clean", attention=made()):
        torch.testing.assert_close(clip.encode_image(IMAGES), own, rtol=1e-9, atol=1e-9)
    with replaced(clip, transcoder() if together else None, tokens=tokens, attention=made()):
        assert (clip.encode_image(IMAGES) - own).abs().max() > 1e-3


def test_layers_and_positions_are_chosen() -> None:
    clip, clt, sparse = backbone("DINOv2 with registers"), transcoder(), units()
    span = clip.tokens.span("patch")
    seen: dict[int, Tensor] = {}
    keep = clip.watch(lambda layer, y: seen.update({layer: y}), site="attn_out")
    with replaced(clip, clt, [1, 2], "patch", attention=sparse, attention_layers=[1]) as trace, keep:
        clip.encode_image(IMAGES)
    assert list(trace.attention) == [1]
    assert sorted(trace.y_hat) == [1, 2]
    assert torch.equal(seen[1][:, span], trace.attention_hat[1][:, span])
    assert not torch.equal(seen[1][:, :1], trace.attention_hat[1][:, :1])
    own = clip.read(IMAGES, "attn_out")["attn_out"]
    torch.testing.assert_close(seen[0].flatten(0, 1), own[0])
    with replaced(clip, clt, attention=sparse) as both:
        clip.encode_image(IMAGES)
    assert sorted(both.attention) == sorted(both.y_hat) == [0, 1, 2]
    assert clip.encode_image(IMAGES).isfinite().all()


def test_gradients_flow_through_the_units() -> None:
    clip, sparse = backbone("open_clip's own ViT"), units()
    with replaced(clip, None, grad=True, attention=sparse):
        clip.encode_image(IMAGES, grad=True)[:, 0].sum().backward()
    assert sparse.W_enc.grad is not None
    assert bool((sparse.W_enc.grad.abs().sum((1, 2)) > 0).all())


def test_refusals() -> None:
    clip = backbone("open_clip's own ViT")
    at_attention = cl.CrossLayerTranscoder(3, 32, 40, cl.TopK(5), "sae", sites=cl.Sites("attn_out"))
    cases = [
        ({"clt": None}, "give attention="),
        ({"clt": None, "attention": units(), "skip": lambda layer, x: x}, "neither edit nor skip"),
        ({"clt": transcoder(), "attention_layers": [0]}, "attention_layers without attention"),
        ({"clt": None, "attention": units(), "error": "mean"}, "error must be none or clean"),
        ({"clt": None, "attention": units(), "layers": [3]}, r"layers \[3\] do not exist"),
        ({"clt": at_attention, "attention": units()}, "stands at attn_out, in the attention"),
        ({"clt": None, "attention": SparseAttention(2, 32, 8, 2)}, "2 layers of width 32, the backbone"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message), replaced(clip, **options):  # type: ignore[arg-type]
            pass

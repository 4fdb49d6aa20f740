"""The cascade's terms against the plain way: dense products, ordinary attention, ordinary autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clt_lightning.backbone.attention import fused_attention
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.training.losses import CascadeConfig
from clt_lightning.training.losses.cascade import capture_clean, cascade_parts
from clt_lightning.transcoder import Activation, BatchTopK, Codes, CrossLayerTranscoder, JumpReLU, TopK
from clt_lightning.transcoder.reference import encode_dense
from tests.gradients import gradient

CONFIG = CascadeConfig(stream=0.7, embedding=1.3, reconstruction=0.4)


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> FrozenCLIP:
    made = FrozenCLIP(pretrained="demo")
    monkeypatch.setattr(FrozenCLIP, "dtype", property(lambda self: torch.float64))
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # what the embeddings are cast to
    made.model.double()
    return made


def images_of(clip: FrozenCLIP, n: int) -> Tensor:
    shape = (n, 3, clip.image_size, clip.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def transcoder(clip: FrozenCLIP, activation: Activation, skip: bool) -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(clip.n_layers, clip.d_model, 96, activation, skip=skip, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in clt.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise, alpha=0.05)
        clt.x_scale.fill_(0.5)
        clt.y_scale.copy_(2.0 ** -torch.arange(clip.n_layers))
        clt.y_var.copy_(1.0 + torch.arange(clip.n_layers))
    return clt


def plainly(clip: FrozenCLIP, clt: CrossLayerTranscoder, images: Tensor) -> Tensor:
    streams: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, i, out: streams.append(out)) for block in clip.blocks]
    clean = clip.capture(images, embeddings=True)
    assert clean.embeddings is not None
    before = list(streams)
    streams.clear()
    codes: list[Tensor] = []
    added: list[Tensor] = []

    def branch(layer: int, x: Tensor, compute_y: Callable[[], Tensor]) -> Tensor:
        if layer == 0:
            codes.clear()
            added.clear()
        flat = x.reshape(-1, clt.d_model) * clt.x_scale[layer]
        codes.append(encode_dense(flat, clt.W_enc[layer], clt.b_enc[layer], clt.activation, layer))
        y = torch.stack([codes[i] @ clt.W_dec[i][:, layer - i] for i in range(layer + 1)]).sum(0)
        if clt.W_skip is not None:
            y = y + flat @ clt.W_skip[layer].T
        added.append((y + clt.b_dec[layer]) * clt.y_scale[layer])
        return added[-1].view(x.shape)

    with clip.mlp_override(branch), clt.activation.not_tracking():
        embeddings = clip.encode_image(images, grad=True)
    for handle in handles:
        handle.remove()

    def error(a: Tensor, b: Tensor, layer: int) -> Tensor:
        return (a - b).square().sum(-1).mean() / clt.y_var[layer]

    layers = range(clt.n_layers)
    stream = torch.stack([error(before[i], streams[i], i) for i in layers]).mean()
    rebuilt = torch.stack([error(clean.y[i], added[i], i) for i in layers]).mean()
    cosine = (embeddings * clean.embeddings).sum(1)
    return CONFIG.stream * stream + CONFIG.embedding * (1 - cosine).mean() + CONFIG.reconstruction * rebuilt


@pytest.mark.parametrize(
    "activation", [TopK(8), BatchTopK(8), JumpReLU(0.3, 0.2)], ids=lambda activation: type(activation).__name__
)
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_loss_and_gradients_are_those_of_the_plain_way(clip: FrozenCLIP, activation: Activation, skip: bool) -> None:
    images = images_of(clip, 4)
    found = []
    for plain in (True, False):
        clt = transcoder(clip, activation, skip)
        if plain:
            loss = plainly(clip, clt, images)
        else:
            clean = capture_clean(clip, images_of(clip, 4))[1]
            loss = torch.stack(list(cascade_parts(clip, clt, images, CONFIG, clean).values())).sum()
        loss.backward()
        found.append((loss.detach(), [gradient(p) for p in clt.parameters()]))
    (plain_loss, plain_gradients), (loss, gradients) = found
    torch.testing.assert_close(loss, plain_loss, rtol=1e-9, atol=0)
    for a, b in zip(gradients, plain_gradients):
        assert float((a - b).abs().max()) <= 1e-9 * float(b.abs().max())


def test_the_first_images_of_a_larger_batch(clip: FrozenCLIP) -> None:
    images = images_of(clip, 5)
    clt = transcoder(clip, TopK(8), False)
    positions = torch.arange(3).expand(5, 3)
    clean = capture_clean(clip, images, positions)[1]
    for ready in (clean, capture_clean(clip, images)[1]):
        shared = cascade_parts(clip, clt, images[:2], CONFIG, ready)
        alone = cascade_parts(clip, clt, images[:2], CONFIG)
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("activation", [TopK(8), BatchTopK(8), JumpReLU(0.3, 0.2)], ids=repr)
@pytest.mark.parametrize("images", [5, 2])
def test_the_steps_codes_serve_the_first_layer(
    clip: FrozenCLIP, activation: Activation, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = images_of(clip, 5)
    found: list[tuple[Tensor, list[Tensor]]] = []
    encoded: list[int] = []
    encode_layer = CrossLayerTranscoder.encode_layer

    def watched(clt: CrossLayerTranscoder, x: Tensor, layer: int, cls: Tensor | None = None) -> Codes:
        encoded.append(layer)
        return encode_layer(clt, x, layer, cls)

    monkeypatch.setattr(CrossLayerTranscoder, "encode_layer", watched)
    for shared in (False, True):
        clt = transcoder(clip, activation, False)
        acts, clean = capture_clean(clip, batch)
        encoded.clear()
        with clt.one_gradient():
            out = clt(acts.x)
            codes = out.codes if shared else None
            if not shared and isinstance(activation, BatchTopK):
                # the cut is the whole batch's, which the codes then carry over to a part of it
                with clt.activation.not_tracking():
                    codes = clt.encode(acts.x)
            parts = cascade_parts(clip, clt, batch[:images], CONFIG, clean, codes=codes)
            loss = out.y_hat.square().mean() + torch.stack(list(parts.values())).sum()
        loss.backward()
        assert encoded == list(range(0 if codes is None else 1, clip.n_layers))
        found.append((loss.detach(), [gradient(p) for p in clt.parameters()]))
    (apart_loss, apart), (loss, gradients) = found
    torch.testing.assert_close(loss, apart_loss, rtol=1e-12, atol=0)
    for a, b in zip(gradients, apart):
        assert float((a - b).abs().max()) <= 1e-10 * float(b.abs().max())


@pytest.mark.parametrize("batch_first", [True, False])
def test_fused_attention_is_attention(batch_first: bool) -> None:
    attention = nn.MultiheadAttention(24, 4, batch_first=batch_first, dtype=torch.float64).requires_grad_(False).eval()
    block: Any = nn.Module()
    block.attn = attention
    x = torch.randn(3, 7, 24, dtype=torch.float64, requires_grad=True)
    found = []
    for fast in (False, True):
        x.grad = None
        if fast:
            with fused_attention([block]):
                assert "forward" in vars(attention)
                out = block.attn(x, x, x, need_weights=False)[0]
                length = x.shape[1 if batch_first else 0]
                mask = torch.zeros(length, length, dtype=torch.float64)
                masked = block.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
                torch.testing.assert_close(masked, out)
                assert block.attn(x, x, x)[1] is not None, "weights that are asked for are given"
        else:
            out = block.attn(x, x, x, need_weights=False)[0]
        out.sin().sum().backward()
        found.append((out.detach(), gradient(x)))
    assert "forward" not in vars(attention)
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

"""[CLS] weighted where codes are chosen: against the plain dense choice, on every path, for any part of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.data.worlds.renders import render
from clt_lightning.training.losses import AuxKConfig
from clt_lightning.training.module import CLTModule
from clt_lightning.training.settings import LossConfig, TokensConfig, TranscoderConfig
from clt_lightning.transcoder import BatchTopK, CrossLayerTranscoder, precision
from clt_lightning.transcoder.activations import dense
from clt_lightning.transcoder.encoders import Backend

POSITIONS, IMAGES = 5, 12


def made(backend: Backend = "auto", weight: float = 4.0, dtype: torch.dtype = torch.float64) -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(
        3, 16, 96, BatchTopK(6, cls_weight=weight), backend=backend, seed=1, n_positions=POSITIONS
    ).to(dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for W in clt.W_dec:
            W.copy_(torch.randn(W.shape, generator=generator))
        clt.b_enc.copy_(0.3 * torch.randn(clt.b_enc.shape, generator=generator))
        threshold: Any = clt.activation.threshold
        threshold.fill_(1.2)
    return clt


def an_x(images: int = IMAGES, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(3, images * POSITIONS, 16, generator=torch.Generator().manual_seed(3), dtype=dtype)
    x[:, ::POSITIONS] *= 0.4  # so small that [CLS] wins little
    return x


def chosen_plainly(clt: CrossLayerTranscoder, x: Tensor, cls: Sequence[int]) -> Tensor:
    """`(layers, tokens, F)`: the weighted pre-activations are chosen among, codes are those without the weight."""
    weights = torch.ones(x.shape[1], 1, dtype=x.dtype)
    weights[list(cls)] = clt.cls_weight
    out = []
    for layer in range(clt.n_layers):
        pre = x[layer] @ clt.W_enc[layer].detach().T + clt.b_enc[layer].detach()
        with clt.activation.not_tracking():
            mask = dense(clt.activation, pre * weights, layer) > 0
        out.append(torch.where(mask, pre, torch.zeros_like(pre)))
    return torch.stack(out)


@pytest.mark.parametrize("backend", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_codes_are_those_of_the_weighted_choice(backend: Backend, training: bool) -> None:
    clt, x = made(backend).train(training), an_x()
    cls = range(0, x.shape[1], POSITIONS)
    wanted = chosen_plainly(clt, x, cls)
    codes = clt.encode(x)
    torch.testing.assert_close(codes.dense(), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(clt(x).codes.dense(), wanted, rtol=1e-12, atol=1e-12)
    plain = made(backend, weight=1.0).train(training).encode(x).dense()
    assert (codes.dense()[:, ::POSITIONS] > 0).sum() > 2 * (plain[:, ::POSITIONS] > 0).sum()
    if training:  # the budget is the same
        assert (codes.dense() > 0).sum() == (plain > 0).sum()
    else:  # and a token's codes are those of its own threshold
        for layer in range(3):
            alone = clt.encode_layer(x[layer], layer).dense()[0]
            torch.testing.assert_close(alone, wanted[layer], rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_dense_path() -> None:
    x = an_x()
    found = []
    for backend in ("sparse", "dense"):
        clt = made(backend).train()
        clt(x).y_hat.square().sum().backward()
        found.append([p.grad.clone() for p in clt.parameters() if p.grad is not None])
    for sparse, full in zip(*found, strict=True):
        torch.testing.assert_close(sparse, full, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_low_precision_screen_chooses_the_same(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies", lambda dtype: True)
    clt = CrossLayerTranscoder(2, 64, 768, BatchTopK(12, cls_weight=4.0), seed=0, n_positions=10).train(training)
    threshold: Any = clt.activation.threshold
    threshold.fill_(1.7)
    x = torch.randn(2, 400, 64, generator=torch.Generator().manual_seed(5))
    x[:, ::10] *= 0.3
    with torch.no_grad(), clt.activation.not_tracking():
        full = clt.encode(x).dense()
        with torch.autocast("cpu", torch.bfloat16):
            low = clt.encode(x).dense()
    assert ((full > 0) == (low > 0)).all(2).double().mean() >= 0.999
    assert (full[:, ::10] > 0).any()
    torch.testing.assert_close(low, full, rtol=1e-4, atol=2e-5)


def test_which_tokens_are_cls_can_be_said_and_must_be_known() -> None:
    clt, x = made().eval(), an_x()
    patches = torch.arange(x.shape[1]) % POSITIONS != 0
    whole = clt.encode(x).dense()
    part = clt.encode(x[:, patches], cls=torch.empty(0, dtype=torch.int64)).dense()
    torch.testing.assert_close(part, whole[:, patches])
    alone = clt.encode(x[:, ~patches], cls=torch.arange(IMAGES)).dense()
    torch.testing.assert_close(alone, whole[:, ~patches])
    with pytest.raises(cl.UserError, match=r"7 tokens are not whole images of 5.*cls="):
        clt.encode(x[:, :7])
    with pytest.raises(cl.UserError, match=r"cls_weight=2 needs n_positions"):
        CrossLayerTranscoder(2, 8, 16, BatchTopK(2, cls_weight=2.0))
    with pytest.raises(cl.UserError, match="cls_weight must be above 0"):
        BatchTopK(2, cls_weight=0.0)


def test_files_keep_it_and_other_tools_are_told(tmp_path: Path) -> None:
    from clt_lightning.transcoder.files import FORMATS

    clt, x = made(dtype=torch.float32).eval(), an_x(dtype=torch.float32)
    clt.save_pretrained(tmp_path)
    again = CrossLayerTranscoder.from_pretrained(tmp_path)
    assert (again.cls_weight, again.n_positions) == (4.0, POSITIONS)
    torch.testing.assert_close(again.encode(x).dense(), clt.encode(x).dense())
    assert any("1/4" in note for note in FORMATS["circuit-tracer"].notes(clt))
    assert not any("1/4" in note for note in FORMATS["circuit-tracer"].notes(made(weight=1.0)))


# -- on a backbone -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return FrozenCLIP(pretrained="demo")


@pytest.fixture(scope="module")
def images(clip: FrozenCLIP) -> Tensor:
    return torch.stack([clip.preprocess(render(0, i).image) for i in range(6)])


def on_the_demo(clip: FrozenCLIP, weight: float = 4.0) -> CrossLayerTranscoder:
    activation = BatchTopK(8, cls_weight=weight)
    clt = CrossLayerTranscoder(clip.n_layers, clip.d_model, 256, activation, seed=0, n_positions=clip.n_positions)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for W in clt.W_dec:
            W.copy_(0.05 * torch.randn(W.shape, generator=generator))
        threshold: Any = clt.activation.threshold
        threshold.fill_(2.0)
    return clt.eval()


@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
def test_a_replaced_forward_knows_its_cls(clip: FrozenCLIP, images: Tensor, tokens: str) -> None:
    clt = on_the_demo(clip)
    x = clip.capture(images).x
    whole = clt.encode_layer(x[0], 0).dense()[0].unflatten(0, (len(images), -1))
    with cl.replaced(clip, clt, tokens=tokens) as trace:
        clip.encode_image(images)
    span = clip.tokens.span(tokens)
    got = trace.codes[0].dense()[0].unflatten(0, (len(images), -1))
    torch.testing.assert_close(got, whole[:, span], rtol=1e-4, atol=1e-5)
    with cl.replaced(clip, clt, tokens=tokens, error="clean"):
        kept = clip.encode_image(images)
    torch.testing.assert_close(kept, clip.encode_image(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
def test_an_autoencoder_as_a_head_knows_its_cls(clip: FrozenCLIP, images: Tensor, tokens: str) -> None:
    sae = CrossLayerTranscoder(
        *(1, clip.d_model, 64, BatchTopK(4, cls_weight=4.0), "sae"),
        **{"seed": 0, "sites": cl.Sites("resid_post", layers=[1]), "n_positions": clip.n_positions},  # type: ignore[arg-type]
    ).eval()
    sae.activation.threshold.fill_(2.0)  # type: ignore[operator]
    x = clip.read(images, "resid_post", [1])["resid_post"]
    whole = sae.encode(x).dense()[0].unflatten(0, (len(images), -1))
    found = clip.with_sae(sae, "codes", tokens=tokens)(images)
    torch.testing.assert_close(found, whole[:, clip.tokens.span(tokens)])
    assert not torch.equal(sae.encode(x, cls=torch.empty(0, dtype=torch.int64)).dense()[0], whole.flatten(0, 1))


def test_a_backbone_without_cls_is_refused() -> None:
    vit = cl.FrozenViT("vit_base_patch16_siglip_224", None)
    activation = BatchTopK(4, cls_weight=4.0)
    clt = CrossLayerTranscoder(vit.n_layers, vit.d_model, 8, activation, n_positions=vit.n_positions)
    with pytest.raises(cl.UserError, match=r"weights \[CLS\].*has none"), cl.replaced(vit, clt):
        pass


def test_a_backbone_of_another_size_is_refused(clip: FrozenCLIP) -> None:
    clt = CrossLayerTranscoder(
        clip.n_layers, clip.d_model, 64, BatchTopK(4, cls_weight=4.0), n_positions=clip.n_positions + 1
    )
    with pytest.raises(cl.UserError, match="tokens of an image"), cl.replaced(clip, clt):
        pass


@pytest.mark.parametrize("per_image", [None, 9])
def test_a_step_in_chunks_is_a_step(clip: FrozenCLIP, images: Tensor, per_image: int | None) -> None:
    """Of the tokens drawn at random, too, the module knows which are [CLS]."""
    torch.manual_seed(0)

    def module(chunk: int | None) -> CLTModule:
        config = TranscoderConfig(n_features=128, activation=BatchTopK(8, cls_weight=4.0))
        loss = LossConfig(auxk=AuxKConfig(coefficient=0.0))
        tokens = TokensConfig(per_image=per_image, max_tokens_per_chunk=chunk)
        return CLTModule(clip, config, loss, tokens=tokens, seed=3)

    one = module(None)
    positions = one._positions(len(images), one._generator(0))
    acts = one._capture({"image": images}, positions)
    cls = one._cls_rows(positions, acts.x.shape[1])
    assert cls is not None
    if per_image is None:
        assert cls.tolist() == [i * clip.n_positions for i in range(len(images))]
    else:
        assert positions is not None
        assert cls.tolist() == [i for i, p in enumerate(positions.flatten().tolist()) if p == 0]
    one.eval()
    threshold: Any = one.transcoder.activation.threshold
    threshold.fill_(2.0)
    done: list[Any] = []
    list(one._chunk_losses(acts.x, acts.y, None, 13, done, cls=cls))
    whole = one.transcoder(acts.x, cls=cls)
    torch.testing.assert_close(torch.cat([part.y_hat for part in done], 1), whole.y_hat)


def test_what_cannot_know_it_is_refused(clip: FrozenCLIP) -> None:
    config = TranscoderConfig(n_features=64, activation=BatchTopK(8, cls_weight=4.0))
    final = TranscoderConfig(
        n_features=64, activation=BatchTopK(8, cls_weight=4.0), topology="sae", sites=cl.Sites("final", "final")
    )
    with pytest.raises(cl.UserError, match="site final has no tokens: set cls_weight to 1"):
        CLTModule(clip, final)
    siglip = cl.FrozenViT("vit_base_patch16_siglip_224", None)
    with pytest.raises(cl.UserError, match=r"no \[CLS\] token: set cls_weight to 1"):
        CLTModule(siglip, config)


def test_tokens_of_a_buffer_bring_along_which_are_cls(clip: FrozenCLIP, images: Tensor) -> None:
    config = TranscoderConfig(n_features=64, activation=BatchTopK(8, cls_weight=4.0))
    module = CLTModule(clip, config, tokens=TokensConfig(buffer=1000), seed=0)
    acts, n = module._capture({"image": images}, None), len(images) * clip.n_positions
    marks = module._marks({"image": images}, None, n)
    assert module._marked
    assert module.buffer is not None
    x, _, mixed = module.buffer.exchange_marked(acts.x, acts.y, marks, torch.Generator().manual_seed(0))
    cls = module._cls_rows(None, n, mixed)
    assert cls is not None
    assert len(cls) == len(images)
    own = {tuple(row) for row in acts.x[0, :: clip.n_positions, :4].tolist()}
    assert {tuple(row) for row in x[0, cls, :4].tolist()} == own

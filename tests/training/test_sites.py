"""A transcoder at any site: read, replaced, refused, trained, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import timm
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.callbacks import Reconstruction
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import BLOCK_SITES
from clt_lightning.training.losses import CascadeConfig, LossConfig
from clt_lightning.transcoder import ActivationStatistics, StatisticsAccumulator

LAYERS, WIDTH, POSITIONS, N = 3, 32, 21, 4
NO_CASCADE = LossConfig(cascade=CascadeConfig(stream=0, embedding=0))


@pytest.fixture(scope="module")
def vit() -> FrozenViT:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=32, patch_size=8, embed_dim=WIDTH, depth=LAYERS, num_heads=2
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return FrozenViT.from_model(model)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(N, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def transcoder(vit: FrozenViT, seed: int = 0, **options: Any) -> cl.CrossLayerTranscoder:
    """One that says something: random decoders, scales from data."""
    form: dict[str, Any] = {"n_layers": LAYERS, "d_model": WIDTH, "n_features": 48, "activation": cl.TopK(6)} | options
    clt = cl.CrossLayerTranscoder(**form, seed=seed)
    sites = str(clt.sites.read), str(clt.sites.write)
    batch = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    acts = vit.capture(batch, clt.sites.resolve(LAYERS, "vit"), sites=sites)
    sums = StatisticsAccumulator(clt.n_layers, clt.d_model, d_out=clt.d_out)
    x = clt.standardised(acts.x)
    sums.update(x, x if acts.x is acts.y else acts.y)
    clt.normalize(sums.result())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for W in (*clt.W_dec, *(clt.W_skip or [])):
            W.copy_(0.1 * torch.randn(W.shape, generator=generator))
    return clt.eval()


SAE: dict[str, Any] = {"topology": "sae"}
EVERYWHERE: dict[str, dict[str, Any]] = {
    "cross_layer": {},
    "skip": {"skip": True},
    "per_layer": {"topology": "per_layer"},
    "mlp_out": SAE,
    **{site: SAE | {"sites": cl.Sites(site)} for site in BLOCK_SITES},  # type: ignore[arg-type]
    "resid_post, tokens standardised": SAE | {"sites": cl.Sites("resid_post"), "normalize": "token"},
    "resid_mid to resid_post": {"topology": "per_layer", "sites": cl.Sites("resid_mid", "resid_post")},
    "some blocks": {"sites": cl.Sites(layers=[0, 2]), "n_layers": 2},
    "one block": SAE | {"sites": cl.Sites("resid_post", layers=[-1]), "n_layers": 1},
    "final_tokens": SAE | {"sites": cl.Sites("final_tokens"), "n_layers": 1},
    "final": SAE | {"sites": cl.Sites("final"), "n_layers": 1},
}


@pytest.mark.parametrize("form", EVERYWHERE.values(), ids=EVERYWHERE)
def test_with_the_clean_error_nothing_changes(vit: FrozenViT, images: Tensor, form: dict[str, Any]) -> None:
    """To the last bits of fp32 where all layers are replaced; without the error the embedding is another one."""
    clt = transcoder(vit, **form)
    before = vit.encode_image(images, normalize=False)
    with torch.no_grad():
        with cl.replaced(vit, clt, error="clean") as trace:
            after = vit.encode_image(images, normalize=False)
        with cl.replaced(vit, clt):
            bare = vit.encode_image(images, normalize=False)
    assert sorted(trace.y_hat) == list(range(clt.n_layers))
    torch.testing.assert_close(after, before, rtol=2e-6, atol=2e-6 * float(before.abs().max()))
    assert not torch.allclose(bare, before, rtol=1e-2, atol=1e-2)
    assert torch.equal(vit.encode_image(images, normalize=False), before)
    assert all("forward" not in vars(module) for module in vit.model.modules())


def test_an_edit_acts_on_top_of_the_clean_error(vit: FrozenViT, images: Tensor) -> None:
    """What an edit adds is added to the untouched model's own tensor, at the first layer exactly."""
    clt = transcoder(vit, **EVERYWHERE["resid_post"])
    shift = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))

    def edit(layer: int, terms: Tensor) -> Tensor:
        return terms + shift if layer == 0 else terms

    own = vit.read(images, "resid_post", [0])["resid_post"]
    with torch.no_grad(), cl.replaced(vit, clt, [0], edit=edit, error="clean"):
        changed = vit.read(images, "resid_post", [0])["resid_post"]
    torch.testing.assert_close(changed, own + shift, rtol=1e-5, atol=1e-4)


def test_a_residual_autoencoder_by_hand(vit: FrozenViT, images: Tensor) -> None:
    """Blocks' outputs exchanged by hooks of one's own, for the reconstruction of patches alone."""
    clt = transcoder(vit, **EVERYWHERE["resid_post"])
    dense = [(clt.W_enc[i], clt.b_enc[i], clt.W_dec[i][:, 0]) for i in range(LAYERS)]

    def rebuilt(layer: int, x: Tensor) -> Tensor:
        W_enc, b_enc, W_dec = dense[layer]
        pre = x * clt.x_scale[layer] @ W_enc.T + b_enc
        top = pre.topk(6, dim=-1)
        codes = torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())
        result: Tensor = (codes @ W_dec + clt.b_dec[layer]) * clt.y_scale[layer]
        return result

    for tokens, cut in {
        "all": slice(0, 21),
        "cls": slice(0, 1),
        "register": slice(1, 5),
        "patch": slice(5, 21),
    }.items():

        def exchange(layer: int, out: Tensor, cut: slice = cut) -> Tensor:
            out = out.clone()
            out[:, cut] = rebuilt(layer, out[:, cut])
            return out

        handles = [vit.blocks[i].register_forward_hook(lambda m, a, out, i=i, f=exchange: f(i, out)) for i in (0, 2)]
        with torch.no_grad():
            expected = vit.model.forward_head(vit.model.forward_features(images), pre_logits=True)
        for handle in handles:
            handle.remove()
        with torch.no_grad(), cl.replaced(vit, clt, [0, 2], tokens):
            found = vit.encode_image(images, normalize=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_read_between_the_sites_of_some_blocks(vit: FrozenViT, images: Tensor) -> None:
    clt = transcoder(vit, **EVERYWHERE["some blocks"])
    acts = vit.capture(images, [0, 2])
    with torch.no_grad(), cl.replaced(vit, clt, [2]) as trace:
        y = vit.read(images, "mlp_out")["mlp_out"]
    own = vit.read(images, "mlp_out")["mlp_out"]
    assert torch.equal(y[:2], own[:2])  # block 1 has none, block 0 was not asked for
    codes = clt.encode(acts.x)
    expected = clt.decode(codes)[1]
    torch.testing.assert_close(y[2], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace.y_hat[1], expected, rtol=1e-4, atol=1e-5)
    with (
        pytest.raises(UserError, match=r"layers \[1\]: this transcoder stands at blocks \[0, 2\] alone"),
        cl.replaced(vit, clt, [1, 2]),
    ):
        pass


def test_a_token_of_its_own_scale(vit: FrozenViT, images: Tensor) -> None:
    clt = transcoder(vit, **EVERYWHERE["resid_post, tokens standardised"])
    x = vit.read(images, "resid_post")["resid_post"]
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=0) + 1e-5
    inner = cl.CrossLayerTranscoder(**(clt.config() | {"normalize": "layer", "activation": cl.TopK(6)}))
    inner.load_state_dict(clt.state_dict())
    expected = inner((x - mean) / std)
    out = clt(x)
    torch.testing.assert_close(out.y_hat, expected.y_hat * std + mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clt.encode(x).dense(), expected.codes.dense(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clt.decode(clt.encode(x), x), out.y_hat, rtol=1e-5, atol=1e-5)
    # a token ten times as large is rebuilt ten times as large, from the same codes
    torch.testing.assert_close(clt(10 * x).y_hat, 10 * out.y_hat, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="needs the tokens x as well"):
        clt.decode(clt.encode(x))
    linear = clt.linear_part(x)
    terms = torch.stack(
        [
            clt.in_units(clt.layer_terms([clt.encode_layer(x[i], i) for i in range(LAYERS)], j), x[j]).sum(0)
            for i, j in zip(range(LAYERS), range(LAYERS))
        ]
    )
    torch.testing.assert_close(terms + linear, out.y_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", EVERYWHERE.values(), ids=EVERYWHERE)
def test_files_keep_the_sites(vit: FrozenViT, images: Tensor, form: dict[str, Any], tmp_path: Path) -> None:
    clt = transcoder(vit, **form)
    again = cl.CrossLayerTranscoder.from_pretrained(clt.save_pretrained(tmp_path / "sae"))
    assert again.config() == clt.config()
    with torch.no_grad(), cl.replaced(vit, clt):
        before = vit.encode_image(images)
    with torch.no_grad(), cl.replaced(vit, again):
        torch.testing.assert_close(vit.encode_image(images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", EVERYWHERE.values(), ids=EVERYWHERE)
def test_training(vit: FrozenViT, images: Tensor, form: dict[str, Any]) -> None:
    form = {"topology": "cross_layer"} | form
    kept = {key: form[key] for key in ("topology", "skip", "sites", "normalize") if key in form}
    settings = cl.TranscoderConfig(n_features=64, activation=cl.TopK(8), **kept)
    module = cl.CLTModule(vit, settings, NO_CASCADE, tokens=cl.TokensConfig(statistics=8), seed=0)
    loader: Any = torch.utils.data.DataLoader(images, batch_size=N)  # type: ignore[arg-type]
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_steps=40,
        max_epochs=-1,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=[Reconstruction()],
        **options,
    )
    module.configure_optimizers = lambda: torch.optim.Adam(module.transcoder.parameters(), 3e-3)  # type: ignore[method-assign]
    trainer.fit(module, loader)
    assert module.transcoder.n_layers == form.get("n_layers", LAYERS)
    assert module.tokens_since_fired.shape == (module.transcoder.n_layers, 64)
    found = trainer.validate(module, loader, verbose=False)[0]
    assert 0 < found["val/fvu/all"] < 0.9
    sets = {name.split("/")[2] for name in found if name.startswith("val/fvu/") and "layer_" not in name}
    once = module.transcoder.sites.read == "final"
    assert sets == ({"cls", "all"} if once else {"cls", "register", "patch", "all"})


def test_a_set_of_tokens_to_learn_from(vit: FrozenViT, images: Tensor) -> None:
    config = cl.TranscoderConfig(n_features=8, topology="sae", sites=cl.Sites("resid_post", layers=[1]))
    for name, cut in {"patch": slice(5, 21), "register": slice(1, 5), "all": slice(0, 21)}.items():
        module = cl.CLTModule(vit, config, NO_CASCADE, tokens=cl.TokensConfig(set=name, per_image=3), seed=0)  # type: ignore[arg-type]
        positions = module._positions(N, module._generator(0))
        assert positions is not None
        assert positions.shape == (N, 3)
        assert bool((positions >= cut.start).all())
        assert bool((positions < cut.stop).all())
        whole = cl.CLTModule(vit, config, NO_CASCADE, tokens=cl.TokensConfig(set=name), seed=0)  # type: ignore[arg-type]
        x, y = whole._sites(whole._capture({"image": images}, whole._positions(N, whole._generator(0))))
        expected = vit.read(images, "resid_post", [1])["resid_post"].unflatten(1, (N, -1))[:, :, cut].flatten(1, 2)
        assert torch.equal(x, expected)
        assert y is x


def test_widths_may_differ() -> None:
    """Codes of inputs of one width rebuild outputs of another, in every topology that allows it, sparse as dense."""
    x, y = torch.randn(2, 50, 8), torch.randn(2, 50, 5)
    for topology in ("cross_layer", "per_layer"):
        found = []
        for backend in ("sparse", "dense"):
            clt = cl.CrossLayerTranscoder(2, 8, 24, cl.TopK(3), topology, True, backend, seed=0, d_out=5)
            sums = StatisticsAccumulator(2, 8, d_out=5)
            sums.update(x, y)
            clt.normalize(sums.result())
            with torch.no_grad():
                for W in (*clt.W_dec, *(clt.W_skip or [])):
                    W.copy_(torch.randn(W.shape, generator=torch.Generator().manual_seed(3)))
            out = clt(x)
            assert out.y_hat.shape == y.shape
            (out.y_hat - y).square().sum().backward()
            codes = clt.encode(x)
            terms = clt.contributions(codes, 1).sum(0) + clt.linear_part(x)[1]
            torch.testing.assert_close(terms, out.y_hat[1], rtol=1e-4, atol=1e-4)
            found.append([out.y_hat, *(p.grad for p in clt.parameters())])
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"sites": cl.Sites("attn_in", "attn_out"), "topology": "per_layer"},
        "attention stands between .* one token at a time",
    ),
    ({"sites": cl.Sites("resid_pre", "mlp_out"), "topology": "per_layer"}, "attention stands between"),
    ({"sites": cl.Sites("resid_mid", "resid_post")}, "'cross_layer' would count it twice"),
    ({"sites": cl.Sites("resid_post")}, "topology 'sae', not 'cross_layer'"),
    ({"sites": cl.Sites("mlp_out", "mlp_out"), "topology": "per_layer"}, "topology 'sae', not 'per_layer'"),
    ({"sites": cl.Sites("mlp_in", "mlp_out"), "topology": "sae"}, "rebuilds what it reads"),
    ({"sites": cl.Sites("mlp_out", "mlp_in"), "topology": "per_layer"}, "mlp_in is there before mlp_out"),
    ({"sites": cl.Sites("resid_post"), "topology": "sae", "skip": True}, "skip=True makes no sense"),
    ({"sites": cl.Sites("resid_post", "final"), "topology": "per_layer"}, "stands alone"),
    ({"sites": cl.Sites("final", layers=[2]), "topology": "sae"}, "once"),
    ({"sites": cl.Sites("final"), "topology": "sae"}, r"n_layers=3.* are 1"),
    ({"sites": cl.Sites(layers=[0, 1])}, r"n_layers=3.* are 2"),
    ({"normalize": "token"}, "for topology 'sae'"),
    ({"normalize": "each"}, "layer or token"),
    ({"d_out": 5, "topology": "sae"}, "rebuilds what it reads"),
]


@pytest.mark.parametrize(("form", "words"), REFUSED, ids=[words[:20] for _, words in REFUSED])
def test_what_cannot_be_is_refused_in_words(form: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        cl.CrossLayerTranscoder(3, 8, 16, **form)


def test_sites_that_do_not_exist(vit: FrozenViT) -> None:
    for arguments, words in (
        ({"read": "mlp"}, r"sites\.read: unknown site 'mlp': choose one of resid_pre"),
        ({"layers": []}, "must be a list of numbers"),
        ({"layers": [2, 1]}, "must ascend"),
        ({"layers": [1, 1]}, "must ascend"),
    ):
        with pytest.raises(UserError, match=words):
            cl.Sites(**arguments)
    assert cl.Sites(layers=[0, -1]).resolve(4, "x") == (0, 3)
    for layers, words in (([5], r"\[5\] do not exist: 'x' has blocks 0 to 3"), ([3, -1], r"blocks \[3, 3\]")):
        with pytest.raises(UserError, match=words):
            cl.Sites(layers=layers).resolve(4, "x")
    clt = cl.CrossLayerTranscoder(1, 8, 16, topology="sae", sites=cl.Sites("resid_post", layers=[7]))
    with pytest.raises(UserError, match=r"\[7\] do not exist"), cl.replaced(vit, clt):
        pass
    clt = cl.CrossLayerTranscoder(1, 8, 16, topology="sae", sites=cl.Sites("resid_post", layers=[1]))
    with (
        pytest.raises(UserError, match=r"is for 1 layers of width 8, the backbone .* has 1 of width 32"),
        cl.replaced(vit, clt),
    ):
        pass
    with pytest.raises(UserError, match="error must be none or clean"), cl.replaced(vit, transcoder(vit), error="own"):  # type: ignore[arg-type]
        pass
    for module in vit.model.modules():
        assert "forward" not in vars(module)


def test_a_site_that_an_override_skips_is_not_made_up(vit: FrozenViT, images: Tensor) -> None:
    with vit.override("resid_post", lambda layer, x, compute: x, [1]):
        assert torch.equal(
            vit.read(images, "resid_post", [1])["resid_post"], vit.read(images, "resid_pre", [1])["resid_pre"]
        )
        with pytest.raises(UserError, match="mlp_in of layer 1 was not computed"):
            vit.capture(images)


def test_as_a_head(vit: FrozenViT, images: Tensor) -> None:
    sae = transcoder(vit, **EVERYWHERE["one block"])
    whole = vit.read(images, "resid_post", [2])["resid_post"]
    rebuilt = vit.with_sae(sae)
    assert torch.equal(rebuilt(images), sae(whole).y_hat[0].view(N, POSITIONS, WIDTH))
    codes = vit.with_sae(sae, "codes", tokens="patch")
    found = codes(images)
    assert found.shape == (N, 16, 48)
    assert torch.equal(found, sae.encode(whole).dense()[0].view(N, POSITIONS, 48)[:, 5:])
    assert ((found != 0).sum(-1) <= 6).all()
    assert (rebuilt.width, codes.width, codes.grid) == (WIDTH, 48, (4, 4))
    assert codes(images[:0]).shape[0] == 0
    downstream = torch.nn.Sequential(codes, torch.nn.Linear(48, 3))
    assert downstream.train()(images).shape == (N, 16, 3)
    assert not sae.training
    pooled = vit.with_sae(transcoder(vit, **EVERYWHERE["final"]), "codes")
    assert pooled(images).shape == (N, 48)
    with pytest.raises(UserError, match="one autoencoder"):
        vit.with_sae(transcoder(vit))
    with pytest.raises(UserError, match="reconstruction or codes"):
        vit.with_sae(sae, "recon")  # type: ignore[arg-type]


def test_statistics_of_two_widths() -> None:
    sums = StatisticsAccumulator(1, 4, d_out=2)
    with pytest.raises(UserError, match="width"):
        sums.update(torch.zeros(1, 3, 4), torch.zeros(1, 2, 2))
    sums.update(torch.ones(1, 3, 4), torch.tensor([[[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]]]))
    found: ActivationStatistics = sums.result()
    assert found.y_mean.tolist() == [[2.0, 0.0]]
    assert float(found.y_var) == pytest.approx(2 / 3)

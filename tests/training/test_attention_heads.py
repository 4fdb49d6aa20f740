"""An autoencoder of the heads' outputs, `attn_z`: its losses, the projection, the cascade, what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import clt_lightning as cl
from clt_lightning.analysis.attention_heads import HeadSums, spanned_heads
from clt_lightning.analysis.attention_units import AttentionUnits
from clt_lightning.analysis.suite import Subject, Suite
from clt_lightning.backbone.families.hugging_face import HuggingFaceViT
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.attention import read_attention, rebuild_attention
from clt_lightning.interventions.heads import HeadProjection
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.attention import AttentionConfig, attention_learner
from clt_lightning.training.losses import CascadeConfig
from clt_lightning.training.losses.cascade import cascade_parts
from clt_lightning.training.module import CLTModule
from clt_lightning.transcoder.attention import load_attention
from tests.backbone.models import ROWS, Row, make
from tests.training.test_attention_autoencoder import sae_of
from tests.training.test_attention_beside import AT_ONCE, IMAGES, fit, images, made, units

ATTN_OUT = cl.Sites("attn_out")


def of_heads(**changes: object) -> AttentionConfig:
    return units(kind="autoencoder", site="attn_z", **changes)


@pytest.fixture(scope="module")
def trained() -> CLTModule:
    module = made(of_heads(), AT_ONCE)
    fit(module, images(IMAGES * 2), steps=2)
    return module


def _projected(block: Any, z: Tensor) -> Tensor:
    made_of: Tensor = block.attn.out_proj(z)
    return made_of


def _variance(y: Tensor) -> Tensor:
    return (y - y.mean(1, keepdim=True)).square().sum(2).mean(1)


def test_beside_a_transcoder_that_stays_what_it_is_alone() -> None:
    """Its losses are the errors of the heads' outputs, and of what the model's projection makes of them."""
    given = images(IMAGES * 2)
    alone, beside = made(), made(of_heads())
    fit(alone, given, steps=2, gradient_clip_val=0.1)
    fit(beside, given, steps=2, gradient_clip_val=0.1)
    for name, tensor in alone.transcoder.state_dict().items():
        assert torch.equal(tensor, beside.transcoder.state_dict()[name]), name
    sae = sae_of(beside)
    assert (sae.topology, str(sae.sites.read), str(sae.sites.write)) == ("sae", "attn_z", "attn_z")
    still = made(of_heads(), lr=1e-9)
    logged = fit(still, given[:IMAGES], steps=1)
    parts = {name for name in logged if name.startswith("train/loss/")}
    assert parts == {"train/loss/reconstruction", "train/loss/attention", "train/loss/attention_z"}
    found = still.clip.read(given[:IMAGES], ("attn_z", "attn_out"))
    z, y = found["attn_z"], found["attn_out"]
    with torch.no_grad():
        z_hat = sae_of(still)(z).y_hat
        y_hat = torch.stack([_projected(still.clip.blocks[i], rows) for i, rows in enumerate(z_hat)])
    for name, true, rebuilt in (("attention_z", z, z_hat), ("attention", y, y_hat)):
        error = (rebuilt - true).square().sum(2).mean(1)
        assert float(logged[f"train/loss/{name}"]) == pytest.approx(float((error / _variance(true)).mean()), rel=1e-3)
        assert bool((error < _variance(true)).all())


def test_the_cascade_puts_it_before_the_models_own_projection(trained: CLTModule) -> None:
    clip, clt, sae, given = trained.clip, trained.transcoder, sae_of(trained), images(3, seed=5)
    with torch.no_grad(), replaced(clip, None, [2], attention=sae) as trace:  # whose input is untouched
        after = clip.read(given, "attn_out")["attn_out"][2]
    with torch.no_grad():
        made_of = rebuild_attention(clip, sae, read_attention(clip, given, heads=True))
    assert made_of.z_hat is not None
    torch.testing.assert_close(trace.attention_hat[2], made_of.z_hat[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, made_of.y_hat[2].flatten(0, 1), rtol=1e-4, atol=1e-5)
    parts = cascade_parts(clip, clt, given, CascadeConfig(stream=1.0, embedding=1.0), None, sae)
    with torch.no_grad(), replaced(clip, clt, attention=sae):
        moved = clip.encode_image(given)
    lost = float(parts["cascade_embedding"].detach())
    assert lost == pytest.approx(float((1 - (clip.encode_image(given) * moved).sum(1)).mean()), rel=1e-4)
    torch.stack(list(parts.values())).sum().backward()
    for weights in (sae.W_enc[0], sae.W_dec[2], clt.W_dec[0]):
        assert weights.grad is not None
        assert float(weights.grad.abs().sum()) > 0
    own = clip.encode_image(given)
    with torch.no_grad(), replaced(clip, None, attention=sae, error="clean"):
        torch.testing.assert_close(clip.encode_image(given), own, rtol=1e-4, atol=1e-5)


def test_both_errors_are_measured_and_the_heads_of_its_features(trained: CLTModule) -> None:
    clip, sae, given = trained.clip, sae_of(trained), images(6, seed=3)
    head = torch.nn.functional.normalize(torch.randn(clip.embed_dim, 3), dim=0)
    suite = Suite(Subject(clip, trained.transcoder, head, ["a", "b", "c"], attention=sae), [AttentionUnits(["all"])])
    for some in given.split(2):
        suite.take({"image": some})
    tables = suite.results()["attention"].tables
    with torch.no_grad():
        out = rebuild_attention(clip, sae, sites := read_attention(clip, given, heads=True))
    assert out.z_hat is not None
    for kind, true, rebuilt in (("fvu", sites.y, out.y_hat), ("fvu_z", sites.of_heads(), out.z_hat)):
        y, y_hat = true.flatten(1, 2), rebuilt.flatten(1, 2)
        want = (y_hat - y).square().sum(2).mean(1) / _variance(y)
        torch.testing.assert_close(tables[kind]["all"].float(), want, rtol=1e-3, atol=1e-5)
    # its features stand for the heads that features of attn_out stand for, which write what theirs are made into
    project, there = HeadProjection(clip), cl.CrossLayerTranscoder(4, 96, 48, cl.TopK(5), "sae", sites=ATTN_OUT)
    with torch.no_grad():
        for layer, W in enumerate(there.W_dec):
            W[:, 0] = sae.W_dec[layer][:, 0] @ project.weight(layer, W).T * sae.y_scale[layer]
    spans, sums = spanned_heads(clip, sae, [given]), HeadSums(clip, there)
    sums.update(given, out.codes)
    torch.testing.assert_close(spans.shares, sums.spans().shares, rtol=1e-4, atol=1e-6)
    assert float(spans.shares.sum(2).mean()) > 0.3
    assert spans.own.isnan().all()


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_the_projection_is_the_models_in_every_layout(row: Row) -> None:
    vit = FrozenViT.from_model(make(row).double())
    found = vit.read(images(2)[:, :, :32, :32].double(), ("attn_z", "attn_out"))
    if isinstance(vit.family, HuggingFaceViT):
        with pytest.raises(UserError, match="attention's parts are not supported"):
            HeadProjection(vit)
        return
    project = HeadProjection(vit)
    if row.what == "EVA's post-norm blocks":
        with pytest.raises(UserError, match="a norm stands behind"):
            attention_learner(vit, of_heads(), 0)
        return
    torch.testing.assert_close(project(found["attn_z"]), found["attn_out"], rtol=1e-9, atol=1e-9)
    sae = attention_learner(vit, of_heads(), 0).attention
    assert sae.d_model == vit.site_width("attn_z")


def test_it_is_written_loaded_and_goes_on(tmp_path: Path, trained: CLTModule) -> None:
    given = images(IMAGES)
    sae_of(trained).save_pretrained(tmp_path)
    again = load_attention(tmp_path)
    module = made(again, lr=1e-9)  # type: ignore[arg-type]
    assert (module.attention_config.kind, module.attention_config.site) == ("autoencoder", "attn_z")
    z = module.clip.read(given, "attn_z")["attn_z"]
    with torch.no_grad():
        before = again(z).y_hat.clone()
        fit(module, given, steps=1)
        torch.testing.assert_close(sae_of(module)(z).y_hat, before, rtol=1e-4, atol=1e-4)
    content: dict[str, Any] = {"hyper_parameters": dict(module.hparams)}
    with pytest.raises(UserError, match=r"model\.attention\.site='attn_z', the config says 'attn_out'"):
        made(units(kind="autoencoder")).check_form(content)


def test_alone_and_with_silent_features() -> None:
    module = cl.AttentionModule(
        cl.FrozenCLIP(pretrained="demo"), of_heads(dead_after=1), tokens={"statistics": 100}, seed=0
    )
    fit(module, images(IMAGES), steps=1)  # type: ignore[arg-type]
    learner = module.units
    sites = read_attention(module.clip, images(2), heads=True)
    learner.images_since_fired.fill_(5)
    parts = learner.losses(module.clip, sites, torch.Generator().manual_seed(0))[0]
    assert sorted(parts) == ["attention", "attention_auxk", "attention_z"]
    assert float(parts["attention_auxk"].detach()) > 0


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(UserError, match=r"attention\.site=attn_z: units write what the attention adds"):
        units(site="attn_z")
    with pytest.raises(UserError, match=r"attention\.site must be one of attn_out, attn_z"):
        units(kind="autoencoder", site="resid_mid")
    clip = cl.FrozenCLIP(pretrained="demo")
    some = cl.CrossLayerTranscoder(2, 96, 32, cl.TopK(4), "sae", sites=cl.Sites("attn_z", layers=[1, 2]))
    with pytest.raises(UserError, match=r"at attn_z of these.*'sae' at attn_z of 2"):
        attention_learner(clip, some, 0)
    learner = attention_learner(clip, of_heads(), seed=0)
    with pytest.raises(UserError, match=r"needs attn_z: read_attention"):
        learner.losses(clip, read_attention(clip, images(1)), torch.Generator())
    assert learner.reads_heads
    assert isinstance(HeadProjection(clip).weight(0, images(1)), Tensor)
    learner.prepare(clip, DataLoader(images(IMAGES), 2), 100)  # type: ignore[arg-type]

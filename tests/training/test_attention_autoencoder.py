"""An autoencoder of what attention adds, trained beside a transcoder: its loss, its start, the cascade, its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import clt_lightning as cl
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.attention import AttentionConfig, attention_learner
from clt_lightning.training.losses import CascadeConfig
from clt_lightning.training.losses.cascade import cascade_parts
from clt_lightning.training.module import CLTModule
from clt_lightning.transcoder.attention import SparseAttention, load_attention
from tests.training.test_attention_beside import IMAGES, STEPS, fit, images, made, units


def autoencoder(**changes: object) -> AttentionConfig:
    return units(kind="autoencoder", **changes)


def sae_of(module: CLTModule) -> cl.CrossLayerTranscoder:
    assert isinstance(module.attention, cl.CrossLayerTranscoder)
    return module.attention


def test_beside_a_transcoder_that_stays_what_it_is_alone() -> None:
    """The transcoder learns what it learns without; the other's loss is its error in units of the variance."""
    given = images(IMAGES * STEPS)
    alone, beside = made(), made(autoencoder())
    fit(alone, given, gradient_clip_val=0.1)
    logged = fit(beside, given, gradient_clip_val=0.1)
    for name, tensor in alone.transcoder.state_dict().items():
        assert torch.equal(tensor, beside.transcoder.state_dict()[name]), name
    parts = {name for name in logged if name.startswith("train/loss/")}
    assert parts == {"train/loss/reconstruction", "train/loss/attention"}
    assert 1 < float(logged["train/attention/l0"]) <= 5
    sae = sae_of(beside)
    assert (sae.topology, str(sae.sites.read), str(sae.sites.write)) == ("sae", "attn_out", "attn_out")
    for W in sae.W_dec:
        torch.testing.assert_close(W.norm(dim=-1), torch.ones(48, 1))
    still = made(autoencoder(), lr=1e-9)
    logged = fit(still, given[:IMAGES], steps=1)
    found = still.clip.read(given[:IMAGES], "attn_out")["attn_out"]
    variance = (found - found.mean(1, keepdim=True)).square().sum(2).mean(1)
    with torch.no_grad():
        error = (sae_of(still)(found).y_hat - found).square().sum(2).mean(1)
    assert float(logged["train/loss/attention"]) == pytest.approx(float((error / variance).mean()), rel=1e-3)
    assert bool((error < variance).all())  # where it starts is better than the mean


def test_a_small_output_is_not_thrown_off_by_the_bias() -> None:
    """A step of Adam's is as long beside what a layer says, whatever its scale."""
    module = made(autoencoder(), lr=5e-3)
    fit(module, images(IMAGES), steps=1)
    sae, before = sae_of(module), made(autoencoder(), lr=1e-9)
    fit(before, images(IMAGES), steps=1)
    moved = torch.stack([(sae.bias(i) - sae_of(before).bias(i)).abs().amax() for i in range(sae.n_layers)])
    assert bool((sae.y_scale != 1).any())
    torch.testing.assert_close(moved, 5e-3 * sae.y_scale, rtol=1e-3, atol=1e-7)


def test_silent_features_learn_from_what_is_left_over() -> None:
    module = made(autoencoder(dead_after=3, n_features=480))
    fit(module, images(IMAGES), steps=1)
    module.zero_grad()
    learner, sae, drawn = module.units, sae_of(module), torch.Generator().manual_seed(0)
    assert learner is not None
    learner.images_since_fired.zero_()
    sites = module._capture_with_attention({"image": images(2)}, False)[2]
    parts, out = learner.losses(module.clip, sites, drawn)
    assert list(parts) == ["attention"]
    for _ in range(2):
        learner.count_fired(out, 2)
    fired = out.codes.fired()
    assert torch.equal(learner.dead, ~fired)
    assert bool(learner.dead.any())
    learner.losses(module.clip, sites, drawn)[0]["attention_auxk"].backward()
    grown = [W.grad for W in sae.W_dec]
    moved = torch.stack([torch.zeros(480) if grad is None else grad.abs().sum((1, 2)) for grad in grown]) > 0
    assert bool(moved.any())
    assert not bool((moved & fired).any())


def test_the_cascade_replaces_both_and_both_learn_from_it() -> None:
    module = made(autoencoder())
    fit(module, images(IMAGES), steps=1)
    clip, clt, sae, given = module.clip, module.transcoder, sae_of(module), images(3, seed=5)
    parts = cascade_parts(clip, clt, given, CascadeConfig(stream=1.0, embedding=1.0), None, sae)
    own = clip.encode_image(given)
    with torch.no_grad(), replaced(clip, clt, attention=sae) as trace:
        moved = clip.encode_image(given)
    assert sorted(trace.attention) == sorted(trace.y_hat) == [0, 1, 2, 3]
    assert trace.attention_hat[2].shape == (3, 37, 96)
    lost = float(parts["cascade_embedding"].detach())
    assert lost == pytest.approx(float((1 - (own * moved).sum(1)).mean()), rel=1e-4)
    torch.stack(list(parts.values())).sum().backward()
    for weights in (sae.W_enc[0], sae.W_dec[2], clt.W_dec[0]):
        assert weights.grad is not None
        assert float(weights.grad.abs().sum()) > 0


def test_it_is_written_loaded_and_goes_on(tmp_path: Path) -> None:
    first, given = made(autoencoder()), images(IMAGES)
    fit(first, given, steps=1)
    sae_of(first).save_pretrained(tmp_path / "attention")
    again = load_attention(tmp_path / "attention")
    assert isinstance(again, cl.CrossLayerTranscoder)
    module = made(again, lr=1e-9)  # type: ignore[arg-type]
    y = module.clip.read(given, "attn_out")["attn_out"]
    with torch.no_grad():
        before = again(y).y_hat.clone()
        fit(module, given, steps=1)
        torch.testing.assert_close(sae_of(module)(y).y_hat, before, rtol=1e-4, atol=1e-4)
    assert module.attention_config.kind == "autoencoder"
    SparseAttention(4, 96, 48, 3).save_pretrained(tmp_path / "units")
    assert isinstance(load_attention(tmp_path / "units"), SparseAttention)
    content = {"hyper_parameters": dict(module.hparams)}
    module.check_form(content)
    with pytest.raises(UserError, match=r"model\.attention\.kind='autoencoder', the config says 'units'"):
        made(units()).check_form(content)


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(UserError, match="d_qk and n_heads are of units"):
        autoencoder(d_qk=4)
    with pytest.raises(UserError, match=r"attention\.kind must be one of units, autoencoder"):
        units(kind="sae")
    with pytest.raises(UserError, match=r"tokens\.set=cls.*needs whole images"):
        CLTModule(tokens=cl.TokensConfig(set="cls"), attention=autoencoder())
    clip = cl.FrozenCLIP(pretrained="demo")
    elsewhere = cl.CrossLayerTranscoder(4, 96, 32, cl.TopK(4), "sae", sites=cl.Sites("resid_post"))
    some = cl.CrossLayerTranscoder(2, 96, 32, cl.TopK(4), "sae", sites=cl.Sites("attn_out", layers=[1, 2]))
    for wrong, message in ((elsewhere, "'sae' at resid_post of 4"), (some, "at attn_out of 2")):
        with pytest.raises(UserError, match=f"at attn_out of all 4 blocks.*{message}"):
            attention_learner(clip, wrong, 0)
        with pytest.raises(UserError, match="at attn_out of all 4 blocks"), replaced(clip, None, attention=wrong):
            pass


def test_weighted_cls_and_other_activations() -> None:
    """BatchTopK that weights [CLS] needs to know where it is."""
    activation = cl.BatchTopK(5, cls_weight=4.0)
    learner = attention_learner(cl.FrozenCLIP(pretrained="demo"), autoencoder(activation=activation), seed=0)
    learner.prepare(cl.FrozenCLIP(pretrained="demo"), DataLoader(images(IMAGES), 2), 100)  # type: ignore[arg-type]
    sae = learner.attention
    assert isinstance(sae, cl.CrossLayerTranscoder)
    assert sae.n_positions == 37
    assert sae.cls_weight == 4

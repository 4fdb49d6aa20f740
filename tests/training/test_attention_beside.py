"""Sparse attention trained beside a transcoder, in one module: what it changes, what it leaves, and two processes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import clt_lightning as cl
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.attention import AttentionConfig, attention_learner
from clt_lightning.training.losses import CascadeConfig
from clt_lightning.training.losses.cascade import cascade_parts
from clt_lightning.training.module import CLTModule
from clt_lightning.transcoder.attention import SparseAttention
from tests.parallel import processes

STEPS, IMAGES = 4, 4
OFF = CascadeConfig(stream=0.0, embedding=0.0)
AT_ONCE = CascadeConfig(start=0.0, warmup=0.0)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def made(
    attention: AttentionConfig | SparseAttention | None = None,
    cascade: CascadeConfig = OFF,
    lr: float = 1e-3,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    **options: Any,
) -> CLTModule:
    def plain(params: Iterable[Any]) -> torch.optim.Optimizer:
        return optimizer(params, lr=lr)  # type: ignore[call-arg]

    return CLTModule(
        cl.FrozenCLIP(pretrained="demo"),
        cl.TranscoderConfig(n_features=64, activation=cl.TopK(4)),
        cl.LossConfig(cascade=cascade),
        optimizer=plain,
        attention=attention or AttentionConfig(),
        schedule=cl.ScheduleConfig(decay="none"),
        tokens=cl.TokensConfig(statistics=37 * IMAGES),
        seed=1,
        **options,
    )


def units(**changes: Any) -> AttentionConfig:
    settings: dict[str, Any] = {"n_features": 48, "activation": cl.TopK(5)}
    return AttentionConfig(**(settings | changes))


def units_of(module: CLTModule) -> SparseAttention:
    assert isinstance(module.attention, SparseAttention)
    return module.attention


def fit(module: CLTModule, given: Tensor, batch: int = IMAGES, steps: int = STEPS, **options: Any) -> dict[str, Tensor]:
    """Trains; gives the numbers that were logged last."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        **options,
    )
    trainer.fit(module, DataLoader(given, batch))  # type: ignore[arg-type]
    return dict(trainer.callback_metrics)


def test_without_a_common_cascade_the_transcoder_is_that_of_a_run_without_units() -> None:
    given = images(IMAGES * STEPS)
    alone, beside = made(), made(units())
    fit(alone, given, gradient_clip_val=0.1)
    logged = fit(beside, given, gradient_clip_val=0.1)
    for name, tensor in alone.transcoder.state_dict().items():
        assert torch.equal(tensor, beside.transcoder.state_dict()[name]), name
    assert alone.attention is None
    norms = units_of(beside).W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    parts = {name for name in logged if name.startswith("train/loss/")}
    assert parts == {"train/loss/reconstruction", "train/loss/attention"}
    assert float(logged["train/loss"]) == pytest.approx(sum(float(logged[name]) for name in parts), rel=1e-6)
    assert 1 < float(logged["train/attention/l0"]) <= 5
    # the units are those of a module that trains them alone, from the same images
    module = cl.AttentionModule(
        beside.clip,
        units(),
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
        schedule={"decay": "none"},
        tokens={"statistics": 37 * IMAGES},
        seed=1,
    )
    fit(module, given, gradient_clip_val=0.1)  # type: ignore[arg-type]
    for name, tensor in module.attention.state_dict().items():
        torch.testing.assert_close(tensor, units_of(beside).state_dict()[name], rtol=1e-5, atol=1e-6)


def test_the_loss_of_units_is_their_error_in_units_of_the_variance() -> None:
    module = made(units(), lr=1e-9)
    given = images(IMAGES)
    logged = fit(module, given, steps=1)
    assert module.attention is not None
    assert module.units is not None
    found = module.clip.read(given, "attn_out")["attn_out"]
    variance = (found - found.mean(1, keepdim=True)).square().sum(2).mean(1)
    torch.testing.assert_close(module.units.y_var, variance, rtol=1e-4, atol=1e-6)
    rebuilt = torch.stack([_alone(module, given, layer) for layer in range(4)])
    error = (found - rebuilt).square().sum(2).mean(1)
    assert float(logged["train/loss/attention"]) == pytest.approx(float((error / variance).mean()), rel=1e-3)


def test_trained_units_go_on_from_what_they_are(tmp_path: Path) -> None:
    first, given = made(units()), images(IMAGES)
    fit(first, given, steps=1)
    assert first.units is not None
    assert bool((units_of(first).y_scale != 1).any())
    units_of(first).save_pretrained(tmp_path)  # scales folded into the weights
    given_units = SparseAttention.from_pretrained(tmp_path)
    with torch.no_grad():  # and of another length than units of one's own making
        given_units.W_dec[0, :, :] *= 3
        given_units.W_enc[0] /= 3
        given_units.b_enc[0] /= 3
    module = made(given_units, lr=1e-9)
    before = [_alone(module, given, layer) for layer in range(4)]
    fit(module, given, steps=2)
    assert module.units is not None
    torch.testing.assert_close(module.units.y_var, first.units.y_var)
    for layer in range(4):
        torch.testing.assert_close(_alone(module, given, layer), before[layer], rtol=1e-4, atol=1e-4)
    # a run that goes on holds the lengths of the start, and not those that rounding has made of them
    resumed = made(SparseAttention(4, 96, 48, 3, cl.TopK(5)))
    resumed.load_state_dict(module.state_dict())
    assert resumed.units is not None
    assert resumed.units.is_prepared
    assert torch.equal(resumed.units.norms, module.units.norms)
    for one in (module, resumed):
        assert one.units is not None
        with torch.no_grad():
            units_of(one).W_dec.mul_(1.7)
        one.units.after_step()
    assert torch.equal(units_of(resumed).W_dec, units_of(module).W_dec)
    torch.testing.assert_close(units_of(module).W_dec.norm(dim=-1), module.units.norms)


def _alone(module: CLTModule, given: Tensor, layer: int) -> Tensor:
    """What the units put in the place of one layer's attention, whose input is untouched."""
    with torch.no_grad(), replaced(module.clip, None, [layer], attention=module.attention) as trace:
        module.clip.encode_image(given)
    return trace.attention_hat[layer].flatten(0, 1)


def test_silent_units_learn_from_what_is_left_over() -> None:
    clip = cl.FrozenCLIP(pretrained="demo")
    learner = attention_learner(clip, units(dead_after=3), seed=0)
    learner.prepare(clip, DataLoader(images(IMAGES), 2), 100)  # type: ignore[arg-type]
    module = made(units(dead_after=3))
    module.units = learner
    sites = module._capture_with_attention({"image": images(2)}, False)[2]
    drawn = torch.Generator().manual_seed(0)
    parts, out = learner.losses(clip, sites, drawn)
    assert list(parts) == ["attention"]
    learner.count_fired(out, 2)
    fired = out.codes.fired()
    assert torch.equal(learner.images_since_fired == 0, fired)
    learner.count_fired(out, 2)
    assert torch.equal(learner.dead, ~fired)
    auxiliary = learner.losses(clip, sites, drawn)[0]["attention_auxk"]
    auxiliary.backward()
    assert isinstance(learner.attention, SparseAttention)
    grown = learner.attention.W_dec.grad
    assert grown is not None
    moved = grown.abs().sum(-1) > 0
    assert bool(moved.any())
    assert not bool((moved & fired).any())


def test_the_cascade_replaces_both() -> None:
    """Against the replaced model's own embeddings; every part of both learns from it."""
    module = made(units())
    fit(module, images(IMAGES), steps=1)
    clip, clt, attention = module.clip, module.transcoder, units_of(module)
    given = images(3, seed=5)
    parts = cascade_parts(clip, clt, given, CascadeConfig(stream=1.0, embedding=1.0), None, attention)
    own = clip.encode_image(given)
    with torch.no_grad(), replaced(clip, clt, attention=attention):
        moved = clip.encode_image(given)
    assert float(parts["cascade_embedding"]) == pytest.approx(float((1 - (own * moved).sum(1)).mean()), rel=1e-4)
    torch.stack(list(parts.values())).sum().backward()
    for weights in (attention.W_enc, attention.W_dec, clt.W_dec[0]):
        assert weights.grad is not None
        assert float(weights.grad.abs().sum()) > 0
    without = cascade_parts(clip, clt, given, CascadeConfig(stream=1.0, embedding=1.0))
    assert float(without["cascade_stream"]) < float(parts["cascade_stream"])


def test_units_alone_learn_in_the_cascade_of_a_transcoder_that_stays(tmp_path: Path) -> None:
    clip = cl.FrozenCLIP(pretrained="demo")
    clt = cl.CrossLayerTranscoder(4, 96, 32, cl.TopK(4), seed=0)
    before = {name: tensor.clone() for name, tensor in clt.state_dict().items()}
    found = []
    for transcoder in (None, clt):
        module = cl.AttentionModule(
            clip, units(), transcoder=transcoder, cascade=AT_ONCE, tokens={"statistics": 100}, seed=0
        )
        fit(module, images(IMAGES), steps=2)  # type: ignore[arg-type]
        assert not any("transcoder" in name for name in module.state_dict())
        assert isinstance(module.attention, SparseAttention)
        found.append(module.attention.W_dec.detach())
    assert not torch.equal(found[0], found[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in clt.state_dict().items())
    assert all(p.requires_grad for p in clt.parameters())
    assert all(p.grad is None for p in clt.parameters())
    sae = cl.CrossLayerTranscoder(4, 96, 32, cl.TopK(4), "sae", sites=cl.Sites("resid_post"))
    with pytest.raises(UserError, match="takes a transcoder of MLPs"):
        cl.AttentionModule(clip, units(), transcoder=sae)


@pytest.mark.parametrize(("share", "steps"), [(0.0, []), (0.5, [1, 3, 5, 7]), (0.25, [3, 7]), (1.0, list(range(8)))])
def test_a_share_of_the_steps_replaces_both(share: float, steps: list[int]) -> None:
    config = units(cascade=share)
    assert [step for step in range(8) if config.in_cascade(step)] == steps


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(UserError, match=r"tokens\.per_image=4.*needs whole images"):
        CLTModule(tokens=cl.TokensConfig(per_image=4), attention=units())  # before any backbone is loaded
    with pytest.raises(UserError, match=r"n_features=50: heads own equal numbers.*such as 51"):
        made(units(n_features=50))
    with pytest.raises(UserError, match=r"model\.parallel\.feature=2"):
        made(units(), parallel=cl.ParallelConfig(feature=2))
    with pytest.raises(UserError, match="stands at attn_out itself"):
        CLTModule(
            cl.FrozenCLIP(pretrained="demo"),
            cl.TranscoderConfig(n_features=64, topology="sae", sites=cl.Sites("attn_out")),
            attention=units(),
        )
    with pytest.raises(UserError, match=r"attention\.n_heads.*give d_qk"):
        units(n_heads=2)
    with pytest.raises(UserError, match="2 layers of width 96, the backbone"):
        CLTModule(cl.FrozenCLIP(pretrained="demo"), attention=SparseAttention(2, 96, 6, 3))


def test_a_checkpoint_of_another_form_is_refused(tmp_path: Path) -> None:
    def saved(module: CLTModule, name: str) -> Path:
        trainer = pl.Trainer(accelerator="cpu", max_steps=0, logger=False, enable_model_summary=False)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(tmp_path / name)
        return tmp_path / name

    with_units = saved(made(units()), "with.ckpt")
    again = CLTModule.load_from_checkpoint(with_units)
    assert again.attention is not None
    assert again.attention.config() == made(units()).attention.config()  # type: ignore[union-attr]
    content = torch.load(with_units, weights_only=True)
    for module, key in ((made(), "n_features=48"), (made(units(d_qk=4)), "d_qk=None")):
        with pytest.raises(UserError, match=rf"trained with model\.attention\.{key}"):
            module.check_form(content)
    made(units(lr=0.5, cascade=0.0)).check_form(content)


def one_of_two(folder: Path, world: int, kind: str) -> dict[str, Any]:
    """Two processes of half the images each, or one of all, from one start."""
    chosen = units(dead_after=8) if kind == "units" else units(kind=kind, auxk=0.0)  # which draws tokens per process
    rank = torch.distributed.get_rank() if world > 1 else 0
    # plain descent: Adam would blow up the rounding of gradients near 0
    module = made(chosen, AT_ONCE, lr=0.05, optimizer=torch.optim.SGD)
    assert module.units is not None
    with torch.random.fork_rng():
        module.units.prepare(module.clip, DataLoader(images(IMAGES, 7), IMAGES), 37 * IMAGES)  # type: ignore[arg-type]
    together = images(IMAGES * STEPS).unflatten(0, (STEPS, 2, -1))  # of each step one half a process
    given = together.flatten(0, 2) if world == 1 else together[:, rank].flatten(0, 1)
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp"} if world > 1 else {}
    fit(module, given, IMAGES // world, **options)
    return dict(module.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["units", "autoencoder"])
def test_two_processes_learn_what_one_learns(tmp_path: Path, kind: str) -> None:
    one = one_of_two(tmp_path, 1, kind)
    two = processes.run(one_of_two, tmp_path, 2, tmp_path, 2, kind)
    assert any(name.startswith("units.attention") for name in one)
    for name, tensor in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        if tensor.is_floating_point():
            assert (two[0][name] - tensor).abs().max() <= 2e-4 * tensor.abs().max() + 1e-7, name
        else:
            assert torch.equal(two[0][name], tensor), name

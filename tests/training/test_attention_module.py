"""AttentionModule: a short training lowers FVU, parts of images are refused, units start at what heads write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.callbacks import AttentionReconstruction
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.attention import read_attention, rebuild_attention
from clt_lightning.metrics import FVU
from clt_lightning.training.attention import AttentionConfig, AttentionModule
from clt_lightning.training.optim import AdamW
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention, load_attention
from tests.backbone.models import ROWS, make

ROW = {row.what: row for row in ROWS}


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vit() -> FrozenViT:
    return FrozenViT.from_model(make(ROW["DINOv2 with registers"]))


def trainer(**options: object) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return lightning.Trainer(**quiet, enable_model_summary=False, log_every_n_steps=10, **options)  # type: ignore[arg-type]


def fvu(vit: FrozenViT, attention: AnyAttention, held_out: Tensor) -> Tensor:
    found = FVU(attention.n_layers, attention.d_model)
    sites = read_attention(vit, held_out.to(attention.b_dec.dtype))
    with torch.no_grad():
        found.update(sites.y, rebuild_attention(vit, attention, sites).y_hat)
    result: Tensor = found.compute()
    return result


KINDS: dict[str, dict[str, Any]] = {
    "the model's patterns": {},
    "own": {"d_qk": 8},
    "autoencoder": {"kind": "autoencoder"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_training_lowers_fvu(vit: FrozenViT, kind: str, tmp_path: Path) -> None:
    module = AttentionModule(
        vit,
        AttentionConfig(64, cl.TopK(8), dead_after=100, **KINDS[kind]),
        optimizer=lambda p: AdamW(p, lr=5e-3),
        tokens=cl.TokensConfig(statistics=600),
    )
    before = module.attention.W_enc[0].detach().clone()
    loader: Any = torch.utils.data.DataLoader(images(96), batch_size=16)  # type: ignore[arg-type]
    held_out = images(48, seed=1)
    trainer(max_steps=1).fit(module, loader)
    started = fvu(vit, module.attention, held_out)
    assert not torch.equal(before, module.attention.W_enc[0])
    assert bool((started < 1.05).all()), started  # no worse than the mean
    run = trainer(max_steps=60)
    run.fit(module, loader)
    ended = fvu(vit, module.attention, held_out)
    assert bool((ended < 0.8 * started).all()), (started, ended)
    norms = module.units.written_norms()
    torch.testing.assert_close(norms, torch.ones_like(norms))
    for name in ("train/fvu", "train/l0", "train/fvu/layer_02", "train/l0/layer_00", "train/dead"):
        assert name in run.callback_metrics
    others: Any = torch.utils.data.DataLoader(held_out, batch_size=20)  # type: ignore[arg-type]
    told = trainer(callbacks=[AttentionReconstruction()]).validate(module, others, verbose=False)[0]
    assert told["val/fvu/layer_01"] == pytest.approx(float(ended[1]), rel=1e-4)
    assert 1 < told["val/l0"] <= 8
    module.attention.save_pretrained(tmp_path)
    again = fvu(vit, load_attention(tmp_path), held_out)
    torch.testing.assert_close(again, ended, rtol=1e-4, atol=1e-6)


def test_the_callback_measures_all_tokens() -> None:
    vit = FrozenViT.from_model(make(ROW["ViT"]))
    attention = SparseAttention(3, 32, 16, 2, cl.TopK(4), seed=0)
    given = images(10)
    loader: Any = torch.utils.data.DataLoader(given, batch_size=4)  # type: ignore[arg-type]
    run = trainer(callbacks=[AttentionReconstruction()])
    told = run.validate(AttentionModule(vit, attention), loader, verbose=False)[0]
    sites = read_attention(vit, given)
    y, out = sites.y, rebuild_attention(vit, attention, sites)
    error, tokens = (y - out.y_hat).double(), y.flatten(1, 2).double()
    spread = (tokens - tokens.mean(1, keepdim=True)).square().sum((1, 2))
    fvu_of, l0_of = ([told[f"val/{name}/layer_{layer:02d}"] for layer in range(3)] for name in ("fvu", "l0"))
    assert fvu_of == pytest.approx((error.square().sum((1, 2, 3)) / spread).tolist(), rel=1e-6)
    assert l0_of == pytest.approx(((out.codes.dense() != 0).sum((1, 2)).double() / tokens.shape[1]).tolist())
    assert told["val/fvu"] == pytest.approx(sum(fvu_of) / 3)


@pytest.mark.parametrize(
    "setting", [{"per_image": 4}, {"set": "patch"}, {"buffer": 1000}, {"max_tokens_per_chunk": 64}], ids=str
)
def test_parts_of_images_are_refused(vit: FrozenViT, setting: dict[str, object]) -> None:
    name = next(iter(setting))
    with pytest.raises(UserError, match=rf"tokens\.{name}=.*needs whole images: leave tokens\.{name} out"):
        AttentionModule(vit, AttentionConfig(64), tokens=cl.TokensConfig(**setting))  # type: ignore[arg-type]


def test_units_of_another_backbone_are_refused(vit: FrozenViT) -> None:
    with pytest.raises(UserError, match=r"3 layers of width 16, the backbone .* has 3 of width 32"):
        AttentionModule(vit, SparseAttention(3, 16, 8, 2))
    with pytest.raises(UserError, match=r"patterns of 4 heads, the backbone .* has 2"):
        AttentionModule(vit, SparseAttention(3, 32, 8, 4))
    AttentionModule(vit, SparseAttention(3, 32, 8, 4, d_qk=4))  # heads of their own


def test_enough_units_per_head_are_the_attention_itself() -> None:
    """Rank-one units at the singular vectors of every head's value-output map, none left out."""
    vit = FrozenViT.from_model(make(ROW["open_clip's own ViT"]).double())
    attention = SparseAttention(3, 32, 64, 2, cl.AbsTopK(64), seed=0).double()
    given = images(3).double()
    for layer in range(3):
        parts, scale = vit.attention_parts(layer), vit.family.branch_scale(layer, 1)
        values, writer = parts.qkv.weight.unflatten(0, (3, 2, 16))[2], parts.out.weight.unflatten(1, (2, 16))
        bias = parts.out.bias + parts.out.weight @ parts.qkv.bias[64:]  # type: ignore[index,operator]
        assert scale is not None
        for head in range(2):
            left, size, right = torch.linalg.svd(scale[:, None] * (writer[:, head] @ values[head]))
            attention.W_enc.data[layer, 32 * head : 32 * head + 32] = size[:, None] * right
            attention.W_dec.data[layer, 32 * head : 32 * head + 32] = left.T
        attention.b_dec.data[layer] = scale * bias
    assert float(fvu(vit, attention, given).max()) < 1e-20


def test_a_checkpoint_loads(vit: FrozenViT, tmp_path: Path) -> None:
    given: Any = torch.utils.data.DataLoader(images(16), batch_size=8)  # type: ignore[arg-type]
    module = AttentionModule(vit, AttentionConfig(32, cl.JumpReLU(0.1), d_qk=4, n_heads=4), tokens={"statistics": 100})
    run = trainer(max_steps=2)
    run.fit(module, given)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = AttentionModule.load_from_checkpoint(tmp_path / "x.ckpt", backbone=vit)
    assert again.attention.config() == module.attention.config()
    assert again.attention.n_heads == 4
    for mine, theirs in zip(again.attention.state_dict().values(), module.attention.state_dict().values()):
        assert torch.equal(mine, theirs)

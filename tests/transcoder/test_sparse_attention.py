"""Sparse attention: the fast form is its definition, pre-activations split over keys, files keep it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.core.errors import UserError
from clt_lightning.training.attention.start import start_from, start_queries
from clt_lightning.transcoder import Activation, ActivationStatistics
from clt_lightning.transcoder.attention import SparseAttention
from clt_lightning.transcoder.attention.reference import replace_dense
from clt_lightning.transcoder.card import Upload

L, D, F, H, N, T = 2, 12, 24, 3, 4, 7


def units(activation: Activation | None = None, d_qk: int | None = None) -> SparseAttention:
    made = SparseAttention(L, D, F, H, activation or cl.TopK(5), d_qk, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    made.x_scale.copy_(torch.tensor([2.0, 0.5]))
    made.y_scale.copy_(torch.tensor([0.25, 4.0]))
    return made


def inputs() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(L, N, T, D, generator=generator, dtype=torch.float64)
    scores = torch.randn(L, N, H, T, T, generator=generator, dtype=torch.float64)
    return x, list(scores.softmax(-1))


@pytest.mark.parametrize("activation", [cl.TopK(5), cl.BatchTopK(4), cl.JumpReLU(0.2), cl.ReLU()], ids=repr)
def test_the_fast_form_is_the_definition(activation: Activation) -> None:
    sparse = units(activation).eval()
    x, patterns = inputs()
    out = sparse(x, patterns)
    for layer in range(L):
        y, codes = replace_dense(sparse, layer, x[layer], patterns[layer])
        torch.testing.assert_close(out.y_hat[layer], y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out.codes.dense_layer(layer), codes.flatten(0, 1), rtol=1e-12, atol=1e-12)
    one, _ = sparse.replace(1, x[1], patterns[1])
    assert torch.equal(one, out.y_hat[1])


def test_gradients_are_those_of_the_definition() -> None:
    sparse = units()
    x, patterns = inputs()
    x.requires_grad_()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    weights = [getattr(sparse, name) for name in names]
    target = torch.randn(L, N, T, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fast = torch.autograd.grad((sparse(x, patterns).y_hat * target).sum(), [*weights, x])
    slow_y = torch.stack([replace_dense(sparse, layer, x[layer], patterns[layer])[0] for layer in range(L)])
    slow = torch.autograd.grad((slow_y * target).sum(), [*weights, x])
    for name, a, b in zip((*names, "x"), fast, slow):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("d_qk", [None, 3], ids=["the model's patterns", "own"])
def test_what_a_unit_writes_is_a_sum_over_keys(d_qk: int | None) -> None:
    sparse = units(d_qk=d_qk)
    x, patterns = inputs()
    given = None if d_qk else patterns[1]
    codes = sparse.encode(1, x[1], given)
    pairs, values = codes.layer(0)
    fires = values > 0
    tokens, features, values = pairs.tokens[fires], pairs.features[fires], values[fires]
    assert len(values) > N * T
    terms = sparse.key_terms(1, x[1], tokens // T, tokens % T, features, given)
    assert terms.shape == (len(values), T)
    writes = (terms.sum(1) + sparse.b_enc[1][features])[:, None] * sparse.writes(1, features)
    dense = torch.zeros(N * T, D, dtype=torch.float64).index_add_(0, tokens, writes)
    rebuilt = sparse.decode(1, codes) - sparse.b_dec[1] * sparse.y_scale[1]
    assert float((dense - rebuilt).detach().abs().max()) < 1e-10
    pattern = sparse.pattern(1, x[1]) if d_qk else patterns[1]
    by_hand = pattern[tokens // T, sparse.head_of[features], tokens % T] * torch.einsum(
        "nkd,nd->nk", x[1][tokens // T], sparse.readers(1, features)
    )
    torch.testing.assert_close(terms, by_hand, rtol=1e-12, atol=1e-12)


def test_positions_are_read_in_both_directions() -> None:
    sparse = units(cl.ReLU())
    x, patterns = inputs()
    before, _ = sparse.replace(0, x[0], patterns[0])
    for key, query in ((0, T - 1), (T - 1, 0)):
        changed = x[0].clone()
        changed[:, key] += 1.0
        after, _ = sparse.replace(0, changed, patterns[0])
        assert (after[:, query] - before[:, query]).abs().max() > 1e-6


@pytest.mark.parametrize("d_qk", [None, 3])
def test_files_keep_it_and_scales_are_folded_in(tmp_path: Path, d_qk: int | None) -> None:
    sparse = units(d_qk=d_qk).float()
    x, patterns = inputs()
    given = None if d_qk else [p.float() for p in patterns]
    sparse.save_pretrained(tmp_path, {"name": "x"})
    loaded = SparseAttention.from_pretrained(tmp_path)
    assert loaded.config() == sparse.config()
    assert bool((loaded.x_scale == 1).all())
    first, second = sparse(x.float(), given), loaded(x.float(), given)
    assert torch.equal(first.codes.dense(), second.codes.dense())
    torch.testing.assert_close(first.y_hat, second.y_hat, rtol=1e-6, atol=1e-6)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot read the transcoder in"):
        SparseAttention.from_pretrained(tmp_path)


def test_normalisation_starts_at_the_mean() -> None:
    sparse = SparseAttention(L, D, F, H, cl.TopK(5), seed=0)
    x, patterns = inputs()
    y = 50 + 8 * x
    mean, var = y.mean((1, 2)), (y - y.mean((1, 2), keepdim=True)).square().sum(3).mean((1, 2))
    sparse.normalize(ActivationStatistics(x.mean((1, 2)), x.norm(dim=3).mean((1, 2)), mean, var))
    start_from(sparse, 0, torch.zeros(F, D), sparse.W_dec[0].detach(), torch.zeros(F))
    made, _ = sparse.replace(0, x[0], patterns[0])
    torch.testing.assert_close(made.double(), mean[0].expand(N, T, D), rtol=1e-5, atol=1e-5)


def test_own_queries_start_at_the_models_scores() -> None:
    sparse = SparseAttention(L, D, F, H, cl.TopK(5), d_qk=4, seed=0).double()
    x, _ = inputs()
    generator = torch.Generator().manual_seed(4)
    q, k = torch.randn(2, H, 4, D + 1, generator=generator, dtype=torch.float64)
    start_queries(sparse, 1, q, k, 0.5)
    ones = torch.cat([x[1], torch.ones(N, T, 1, dtype=torch.float64)], -1)[:, None]
    scores = (ones @ q.transpose(1, 2)) @ (ones @ k.transpose(1, 2)).transpose(2, 3) * 0.5
    torch.testing.assert_close(sparse.pattern(1, x[1]), scores.softmax(-1), rtol=1e-9, atol=1e-9)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"n_features=10: .* multiple of n_heads=4, such as 8"):
        SparseAttention(L, D, 10, 4)
    sparse = units()
    x, patterns = inputs()
    with pytest.raises(UserError, match="layer 0: these units move by the model's patterns"):
        sparse(x)
    with pytest.raises(UserError, match=r"\(4, 3, 7, 7\), got \(4, 3, 7, 6\)"):
        sparse.replace(0, x[0], patterns[0][..., :6])
    with pytest.raises(UserError, match="whole images"):
        sparse(x.flatten(1, 2), patterns)
    with pytest.raises(UserError, match="patterns of their own"):
        units(d_qk=2).replace(0, x[0], patterns[0])
    with pytest.raises(UserError, match="d_qk is None"):
        sparse.pattern(0, x[0])


def test_the_card_says_what_it_is_and_what_was_measured() -> None:
    made = SparseAttention(2, 8, 6, 2)
    table = {"all": {"layers": [0.1, 0.3], "mean": 0.2}}
    drop = {"value": 0.021, "low": 0.01, "high": 0.03}
    found = {
        "images": 9,
        "attention": {"fvu": table, "l0": table, "dead": table, "heads": None},
        "zero_shot": {"arms": [{"kind": "with_attention", "drop": drop}, {"kind": "replaced", "drop": drop}]},
    }
    text = made.card(Upload("me/units", {"clip": {"pretrained": "demo"}}, {"evaluation": {"test": found}}, "mit", "v1"))
    for line in (
        "license: mit",
        "- sparse-attention",
        "| size | 2 layers x 6 units of width 8, 220 parameters |",
        "| patterns | 2 of the model's heads |",
        "| FVU of attn_out, mean over layers | 0.2000 |",
        "| points lost, every MLP and every attention replaced | 2.10 (1.00 to 3.00) |",
        'units = cl.SparseAttention.from_pretrained("me/units", revision="v1")',
    ):
        assert line in text, line
    assert "Nothing was recorded" in SparseAttention(2, 8, 6, 2, d_qk=3).card(Upload("me/units"))


def test_a_device_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    SparseAttention(2, 8, 6, 2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="device='nowhere'"):
        SparseAttention.from_pretrained(tmp_path, device="nowhere")

"""What a bf16 product screens is what an fp32 product selects: for every activation, on random and trained weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.data.worlds.renders import render
from clt_lightning.training.losses import reconstruction_loss
from clt_lightning.training.optim import AdamW
from clt_lightning.transcoder import (
    AbsTopK,
    Activation,
    BatchTopK,
    Codes,
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    StatisticsAccumulator,
    TopK,
    precision,
    screening,
)
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Screen
from tests.gradients import gradient
from tests.transcoder.conftest import MakeCLT

ACTIVATIONS: list[Activation] = [TopK(16), AbsTopK(16), BatchTopK(16), JumpReLU(2.0, 0.3), ReLU()]


@pytest.fixture(autouse=True)
def bf16_on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies", lambda dtype: True)


def codes_of(model: CrossLayerTranscoder, x: Tensor, low: bool) -> Codes:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        return model.encode(x)


def same_rows(a: Codes, b: Codes) -> float:
    """Share of (layer, token) rows with the same active features."""
    return float(((a.dense() != 0) == (b.dense() != 0)).all(2).double().mean())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["centred", "shifted"])
def test_the_features_of_fp32(make_clt: MakeCLT, activation: Activation, training: bool, shift: float) -> None:
    model = make_clt(4, 64, 768, torch.float32, activation=activation, scales=False).train(training)
    if isinstance(activation, BatchTopK):
        threshold: Any = model.activation.threshold
        threshold.fill_(1.5)
    x = torch.randn(4, 300, 64, generator=torch.Generator().manual_seed(5)) + shift
    full, low = codes_of(model, x, False), codes_of(model, x, True)
    assert full.l0().double().mean() > 4
    assert same_rows(full, low) >= 0.999
    torch.testing.assert_close(low.dense(), full.dense(), rtol=1e-4, atol=2e-5)
    if not isinstance(activation, ReLU):  # half of its features fire: the product is made in fp32
        rough = [rough_product(model, x, layer) for layer in range(4)]
        plain = Codes.from_dense(torch.stack([reference(model, r, layer) for layer, r in enumerate(rough)]))
        assert same_rows(full, plain) < 0.98, "a bf16 product alone selects others: the test can fail"


def rough_product(model: CrossLayerTranscoder, x: Tensor, layer: int) -> Tensor:
    W, b = model.W_enc[layer].detach(), model.b_enc[layer].detach()
    return torch.nn.functional.linear(x[layer].bfloat16(), W.bfloat16(), b.bfloat16()).float()


def reference(model: CrossLayerTranscoder, pre: Tensor, layer: int) -> Tensor:
    """Codes of given pre-activations."""
    with model.activation.not_tracking(), torch.no_grad():
        selected = model.activation.select(pre, layer)
        pairs = selected if isinstance(selected, Pairs) else Pairs.from_mask(selected)
        values = model.activation.values(pre[pairs.tokens, pairs.features], pairs.features, layer)
        return Codes([pairs], [values]).dense()[0]


@pytest.mark.parametrize("activation", [TopK(64), BatchTopK(64)], ids=lambda a: type(a).__name__)
def test_at_full_size(activation: Activation) -> None:
    """F 6,144, k 64: 2,048 rows."""
    model = CrossLayerTranscoder(2, 256, 6144, activation, seed=3)
    x = torch.randn(2, 1024, 256, generator=torch.Generator().manual_seed(1))
    assert same_rows(codes_of(model, x, False), codes_of(model, x, True)) >= 0.999


@pytest.mark.parametrize("activation", ACTIVATIONS[:4], ids=lambda a: type(a).__name__)
def test_gradients_are_those_of_fp32(make_clt: MakeCLT, activation: Activation) -> None:
    x = torch.randn(3, 200, 32, generator=torch.Generator().manual_seed(2))
    found = []
    for low in (False, True):
        model = make_clt(3, 32, 320, torch.float32, activation=activation).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = model(x)
        assert (out.repeated is not None) == low
        out.y_hat.square().mean().backward()
        found.append([gradient(p) for p in (*model.W_enc, *model.W_dec, model.b_enc)])
    for full, low in zip(*found):
        assert float((low - full).norm() / full.norm()) < 1e-4


@pytest.mark.parametrize("activation", [TopK(8), AbsTopK(8), BatchTopK(8)], ids=lambda a: type(a).__name__)
def test_rows_that_cannot_be_told_apart_are_made_again(make_clt: MakeCLT, activation: Activation) -> None:
    """Hundreds of features that bf16 gives one value: no slack is enough, and the rows are counted."""
    model = make_clt(1, 64, 800, torch.float32, activation=activation, scales=False).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        row = torch.randn(64, generator=generator)
        model.W_enc[0][:400] = row + 2e-3 * torch.randn(400, 64, generator=generator)
        model.b_enc[0, :400] = 0
    x = 0.02 * torch.randn(1, 100, 64, generator=generator) + row
    full = codes_of(model, x, False)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.repeated is not None
    assert float(out.repeated) > 0.5
    assert same_rows(full, out.codes) >= 0.99
    plain = Codes.from_dense(reference(model, rough_product(model, x, 0), 0)[None])
    assert same_rows(full, plain) < 0.9


def test_the_share_is_that_of_all_rows(make_clt: MakeCLT, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_clt(3, 32, 640, torch.float32, activation=TopK(8))
    x = torch.randn(3, 90, 32, generator=torch.Generator().manual_seed(2))
    for deviations, share in ((0.0, 0.0), (1e6, 1.0)):
        monkeypatch.setattr(screening, "DEVIATIONS", deviations)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        assert out.repeated is not None
        assert float(out.repeated) == share
        assert same_rows(codes_of(model, x, False), out.codes) == 1.0 if share else True


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS[:4], ids=lambda a: type(a).__name__)
def test_what_is_not_finite_is_made_in_fp32(make_clt: MakeCLT, activation: Activation, bad: float) -> None:
    """And ends: nothing is widened for ever."""
    model = make_clt(1, 32, 640, torch.float32, activation=activation)
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(2))
    x[0, 3, 0] = bad
    codes_of(model, x, True)


@pytest.mark.parametrize("tokens", [0, 1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_few_tokens(make_clt: MakeCLT, activation: Activation, tokens: int) -> None:
    model = make_clt(2, 16, 128, torch.float32, activation=activation)
    x = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(codes_of(model, x, True).dense() != 0, codes_of(model, x, False).dense() != 0)


def test_an_activation_that_cannot_choose_gets_an_fp32_product(make_clt: MakeCLT) -> None:
    class Above(Activation):
        def select(self, pre: Tensor, layer: int) -> Tensor:
            return pre > 2.0

        def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
            return pre

    model = make_clt(2, 16, 128, torch.float32, activation=Above(), backend="sparse")
    x = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(codes_of(model, x, True).dense(), codes_of(model, x, False).dense())


def test_exact_values_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(shape, generator=generator) for shape in ((20, 8), (30, 8), (30,)))
    screen = Screen(x, W, b, torch.bfloat16)
    pairs = Pairs.from_mask(torch.rand(20, 30, generator=generator) < 0.2)
    expected = (x.double() @ W.double().T + b.double())[pairs.tokens, pairs.features]
    torch.testing.assert_close(screen.exact(pairs).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(screen.rows(torch.tensor([3, 1])), (x @ W.T + b)[[3, 1]])
    check: Callable[[Tensor, Tensor], None] = torch.testing.assert_close
    check(screen.everything(), x @ W.T + b)


@pytest.mark.parametrize("activation", [TopK(12), BatchTopK(12), JumpReLU(1.0, 0.3)], ids=lambda a: type(a).__name__)
def test_on_weights_that_were_trained(activation: Activation) -> None:
    """On the demo, in bf16: loaded in fp32, the same features are selected on other images."""
    clip = FrozenCLIP(pretrained="demo")
    acts = clip.capture(torch.stack([clip.preprocess(render(5, index).image) for index in range(40)]))
    known, x = acts.x[:, :1000], acts.x[:, 1000:]
    clt = CrossLayerTranscoder(clip.n_layers, clip.d_model, 768, activation, seed=0)
    statistics = StatisticsAccumulator(clip.n_layers, clip.d_model)
    statistics.update(known, acts.y[:, :1000])
    clt.normalize(statistics.result())
    optimizer = AdamW(clt.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        tokens = torch.randperm(1000, generator=generator)[:200]
        with torch.autocast("cpu", torch.bfloat16):
            y_hat = clt(known[:, tokens]).y_hat
        reconstruction_loss(acts.y[:, tokens], y_hat, clt.y_var, None).backward()
        optimizer.step()
        optimizer.zero_grad()
    for training in (True, False):
        clt.train(training)
        with clt.activation.not_tracking():
            full = codes_of(clt, x, False)
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                out = clt(x)
        assert same_rows(full, out.codes) >= 0.999
        assert out.repeated is not None
        assert float(out.repeated) < 0.05


@pytest.mark.parametrize("activation", [TopK(8), AbsTopK(8), BatchTopK(8)], ids=lambda a: type(a).__name__)
def test_large_codes_bring_no_doubt(make_clt: MakeCLT, activation: Activation) -> None:
    """Half of a token's codes are a hundred times the cut, and rounded as much more: the cut is as sure as without."""
    model = make_clt(1, 64, 1600, torch.float32, activation=activation, scales=False).train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 200, 64, generator=generator)
    with torch.no_grad():
        model.W_enc[0][:, 0] = 0
        model.W_enc[0][:4] = 0
        model.W_enc[0][:4, 0] = 1
        x[0, :, 0] = 100 + 50 * torch.rand(200, generator=generator)
    full = codes_of(model, x, False)
    assert bool((full.dense()[0, :, :4] != 0).all())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.repeated is not None
    assert float(out.repeated) < 0.05
    assert same_rows(full, out.codes) >= 0.999


def test_the_error_is_told_near_the_cut_and_of_long_tokens_too() -> None:
    """Errors of .01 near the cut and of 1 far above it; then a token of far pairs alone, with errors of .2."""
    generator = torch.Generator().manual_seed(0)
    pairs = Pairs.rectangular(torch.arange(24).expand(40, 24), 64)
    guess = 2 + 0.5 * torch.rand(40, 24, generator=generator)
    error = 0.01 * torch.ones(40, 24)
    guess[:, :6], error[:, :6] = 200, 1.0
    told = screening.largest_error(guess.view(-1), (guess + error).view(-1), pairs, guess.view(-1))
    assert 0.009 < float(told) < 0.03
    guess[7], error[7] = 40 + 10 * torch.rand(24, generator=generator), 0.2
    told = screening.largest_error(guess.view(-1), (guess + error).view(-1), pairs, guess.view(-1) - 2)
    assert 0.19 < float(told) < 0.3


@pytest.mark.parametrize("per_feature", [False, True])
def test_a_stored_threshold_is_looked_at_once(per_feature: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample tells the product's error first: features that fire have larger weights than typical ones."""
    generator = torch.Generator().manual_seed(2)
    x, b = torch.randn(300, 64, generator=generator), torch.zeros(800)
    W = torch.randn(800, 64, generator=generator) * torch.where(torch.arange(800) < 60, 1.0, 0.05)[:, None]
    exact = x @ W.T
    cut = exact.flatten().topk(300 * 8).values[-1]
    screen = Screen(x, W, b, torch.bfloat16)
    threshold = cut.expand(800) if per_feature else cut
    chosen = screening.choose_above(screen, threshold)
    assert chosen is not None
    assert chosen.repeated is not None
    assert int(chosen.repeated) == 0
    expected = Pairs.from_mask(exact > cut)
    assert torch.equal(chosen.pairs.places, expected.places)
    monkeypatch.setattr(screening, "SAMPLE", 10**6)  # by the guess alone
    guessed = screening.choose_above(screen, threshold)
    assert guessed is not None
    assert guessed.repeated is not None
    assert int(guessed.repeated) > 150
    assert torch.equal(guessed.pairs.places, expected.places)

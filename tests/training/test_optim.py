"""RowSparseAdam against dense AdamW, and its lazy variant against the formula."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clt_lightning.core.errors import UserError
from clt_lightning.training.optim import AdamW, RowSparseAdam
from clt_lightning.training.optim.row_sparse import _moving_steps
from clt_lightning.transcoder import CrossLayerTranscoder, TopK

# moments that fade fast, so that rows come to rest within a short test: 22 steps in fp32, 45 in float64
FAST = (0.3, 0.5)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Contiguous rows, W_dec's layout (target by target), and a vector."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return [nn.Parameter(randn(8, 3)), nn.Parameter(randn(2, 8, 3).transpose(0, 1)), nn.Parameter(randn(5))]


def set_gradients(params: list[nn.Parameter], step: int, every: int) -> None:
    """Row f fires every `f * every + 1` steps or so; row 7 never; scales differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(step)
    for p in params:
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 5 - 3)
        if p.dim() > 1:
            rows = torch.tensor([(step + f) % (f * every + 1) == 0 and f != 7 for f in range(8)])
            g[~rows] = 0
        p.grad = torch.empty_like(p).copy_(g)


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range, every: int = 1) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(step / 7)) + 1e-3
        set_gradients(params, step, every)
        optimizer.step()


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((p - q).detach().abs().max() / q.detach().abs().max()) for p, q in zip(a, b))


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6])
@pytest.mark.parametrize("fused", [True, False])
def test_clipping_within_the_step_is_clipping_before_it(max_norm: float, fused: bool) -> None:
    ours, torchs = parameters(torch.float32), parameters(torch.float32)
    folded, plain = AdamW(ours, lr=0.1, fused=fused), torch.optim.AdamW(torchs, lr=0.1, weight_decay=0.0)
    wide = [nn.Parameter(p.detach().double()) for p in ours]
    exact = torch.optim.AdamW(wide, lr=0.1, weight_decay=0.0)
    for step in range(12):
        for params in (ours, torchs, wide):
            set_gradients(params, step, 1)
        before = [p.grad.clone() for p in ours if p.grad is not None]
        folded.clip(torch.nn.utils.get_total_norm(before), max_norm)
        if fused:  # nothing is read and written before the step
            assert all(torch.equal(p.grad, g) for p, g in zip(ours, before) if p.grad is not None)
        for params in (torchs, wide):
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        folded.step(), plain.step(), exact.step()
        assert distance(ours, torchs) < 1e-6
        # to rounding: as near to the exact step as torch's own
        assert distance([p.double() for p in ours], wide) < 5e-7
    # the next step is its own: what was not clipped is taken as it is
    for params in (ours, torchs):
        set_gradients(params, 99, 1)
    folded.step(), plain.step()
    assert distance(ours, torchs) < 1e-6


@pytest.mark.parametrize("fused", [True, False])
def test_clipping_goes_by_the_kernel_that_a_checkpoint_brings(fused: bool) -> None:
    ours, torchs = parameters(torch.float32), parameters(torch.float32)
    plain = torch.optim.AdamW(torchs, lr=0.1, weight_decay=0.0, fused=not fused)
    folded = AdamW(ours, lr=0.1, fused=fused)
    for params in (ours, torchs):
        set_gradients(params, 0, 1)
    plain.step(), folded.step()
    folded.load_state_dict(copy.deepcopy(plain.state_dict()))
    for params in (ours, torchs):
        set_gradients(params, 1, 1)
    folded.clip(torch.nn.utils.clip_grad_norm_(torchs, 0.5), 0.5)
    plain.step(), folded.step()
    assert distance(ours, torchs) < 1e-6


def test_a_gradient_that_is_short_enough_stays_as_it_is() -> None:
    ours, others = parameters(torch.float32), parameters(torch.float32)
    folded, plain = AdamW(ours, lr=0.1), AdamW(others, lr=0.1)
    for step in range(3):
        for params in (ours, others):
            set_gradients(params, step, 1)
        folded.clip(torch.nn.utils.get_total_norm([p.grad for p in ours if p.grad is not None]), 1e6)
        folded.step(), plain.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, others))


@pytest.mark.parametrize("dense_above", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("betas", "every", "steps"), [((0.9, 0.999), 1, 50), (FAST, 30, 200)], ids=["usual", "rests"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
def test_exact_equals_dense_adamw(
    dense_above: float,
    weight_decay: float,
    betas: tuple[float, float],
    every: int,
    steps: int,
    dtype: torch.dtype,
    bound: float,
) -> None:
    ours, dense = parameters(dtype), parameters(dtype)
    options: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay}
    sparse = RowSparseAdam(ours, dense_above=dense_above, **options)
    reference = torch.optim.AdamW(dense, foreach=False, **options)
    rested = 0
    for step in range(steps):
        train(sparse, ours, range(step, step + 1), every)
        train(reference, dense, range(step, step + 1), every)
        # equal in every step, not only in the end: the forward reads all rows
        assert distance(ours, dense) < bound
        state = sparse.state[ours[0]]
        rested += int((state["current"] < state["step"]).sum())
    assert ours[1].stride() == sparse.state[ours[1]]["exp_avg"].stride() == (3, 24, 1)
    if dense_above == 1.0 and every == 30:
        assert rested > steps  # the test has seen rows at rest, more than the one that never fires


def test_idle_rows_are_not_written() -> None:
    params = parameters()
    optimizer = RowSparseAdam(params, dense_above=1.0, betas=FAST)
    train(optimizer, params, range(3))
    state = optimizer.state[params[0]]
    assert state["current"][7] == 0
    state["exp_avg"][7] = torch.nan
    train(optimizer, params, range(3, 6))
    assert params[0].isfinite().all()


def test_lazy_formula() -> None:
    """m, v and w of a row change when it has a gradient, with the corrections of the global step."""
    beta1, beta2, lr, decay, eps = 0.8, 0.9, 0.01, 0.1, 1e-6
    p = parameters()[1]
    w = p.detach().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    optimizer = RowSparseAdam([p], lr, (beta1, beta2), eps, decay, catch_up="lazy")
    for step in range(1, 40):
        set_gradients([p], step, 3)
        assert p.grad is not None
        for f in p.grad.flatten(1).any(1).nonzero().flatten():
            m[f] = beta1 * m[f] + (1 - beta1) * p.grad[f]
            v[f] = beta2 * v[f] + (1 - beta2) * p.grad[f] ** 2
            w[f] *= 1 - lr * decay
            w[f] -= lr * (m[f] / (1 - beta1**step)) / ((v[f] / (1 - beta2**step)).sqrt() + eps)
        optimizer.step()
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("catch_up", ["exact", "lazy"])
def test_state_dict_round_trip(catch_up: Any, tmp_path: Path) -> None:
    ours, whole = parameters(torch.float32), parameters(torch.float32)
    options: dict[str, Any] = {"betas": FAST, "weight_decay": 0.1, "catch_up": catch_up, "dense_above": 0.5}
    optimizer = RowSparseAdam(ours, **options)
    train(optimizer, ours, range(90), 30)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = RowSparseAdam(ours)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.state[ours[0]]["touched"].dtype == torch.int32
    train(resumed, ours, range(90, 130), 30)
    train(RowSparseAdam(whole, **options), whole, range(130), 30)
    assert all(torch.equal(a, b) for a, b in zip(ours, whole))


def test_takes_over_from_adamw() -> None:
    ours, dense = parameters(), parameters()
    before, reference = torch.optim.AdamW(ours, betas=FAST), torch.optim.AdamW(dense, betas=FAST)
    train(before, ours, range(20), 30)
    after = RowSparseAdam(ours, betas=FAST, dense_above=1.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, ours, range(20, 200), 30)
    train(reference, dense, range(200), 30)
    assert distance(ours, dense) < 1e-12


def test_bf16_parameters_have_fp32_state() -> None:
    ours, dense = parameters(torch.bfloat16), parameters(torch.float32)
    optimizer = RowSparseAdam(ours)
    train(optimizer, ours, range(5))
    train(torch.optim.AdamW(dense, weight_decay=0.0), dense, range(5))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert optimizer.state[ours[0]]["exp_avg"].dtype == torch.float32
    assert distance([nn.Parameter(p.float()) for p in ours], dense) < 0.02


def test_touched_rows_of_the_module() -> None:
    """Rows that the module names are taken at its word; their gradients are not looked at."""
    p = parameters()[0]
    before = p.detach().clone()
    p.grad = torch.ones_like(p)
    p.touched_rows = torch.arange(8) < 2  # type: ignore[attr-defined]
    RowSparseAdam([p], lr=0.1, dense_above=1.0).step()
    assert (p != before).all(1).tolist() == [True] * 2 + [False] * 6
    p.touched_rows = torch.ones(3)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"bool tensor of shape \(8,\)"):
        RowSparseAdam([p]).step()


def test_nan_gradients_count() -> None:
    p = parameters()[0]
    p.grad = torch.zeros_like(p)
    p.grad[2, 1] = torch.nan
    RowSparseAdam([p]).step()
    assert p.isnan().any(1).nonzero().tolist() == [[2]]


def test_trains_a_transcoder_like_adamw() -> None:
    """Gradients that depend on the weights: the encoder reads all rows, moving or not."""
    losses = []
    for kind in (RowSparseAdam, torch.optim.AdamW):
        clt = CrossLayerTranscoder(2, 4, 40, TopK(1), seed=0).double()
        optimizer = kind(clt.parameters(), lr=1e-2, betas=FAST, weight_decay=0.01)
        if kind is RowSparseAdam:
            optimizer.param_groups[0]["dense_above"] = 1.0
        run = []
        for step in range(120):
            x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            loss = (clt(x).y_hat - x.tanh()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.append(loss.item())
        losses.append(run)
    torch.testing.assert_close(*losses, rtol=1e-8, atol=0)
    assert losses[0][-1] < losses[0][0]


@settings(max_examples=25, deadline=None)
@given(beta1=st.floats(0, 0.95), beta2=st.floats(0.95, 0.9999))
def test_moving_steps_bound(beta1: float, beta2: float) -> None:
    """A row driven by one gradient: after H steps its moves are under a tenth of eps of the first one's scale."""
    steps, ratio = _moving_steps((beta1, beta2), torch.float32), beta1 / math.sqrt(beta2)
    eps = torch.finfo(torch.float32).eps / 10
    assert ratio**steps <= eps * (1 + 1e-9)
    assert steps == 1 or ratio ** (steps - 1) > eps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative"),
        ({"betas": (0.9, 1.0)}, "betas must lie in"),
        ({"betas": (0.9, 0.8)}, "never come to rest"),
        ({"catch_up": "later"}, "catch_up must be exact or lazy"),
        ({"weight_decay": float("nan")}, "weight_decay"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RowSparseAdam(parameters(), **options)


def test_from_yaml() -> None:
    from jsonargparse import ArgumentParser
    from lightning.pytorch.cli import OptimizerCallable

    parser = ArgumentParser()
    parser.add_argument("--optimizer", type=OptimizerCallable)
    config = "{class_path: clt_lightning.training.optim.RowSparseAdam, init_args: {lr: 4.0e-4, catch_up: lazy}}"
    make = parser.instantiate_classes(parser.parse_args(["--optimizer", config])).optimizer
    optimizer = make(parameters())
    assert isinstance(optimizer, RowSparseAdam)
    assert optimizer.defaults["catch_up"] == "lazy"


@pytest.mark.parametrize("other_layout", [False, True], ids=["own layout", "moments in another layout"])
def test_adamw_is_torchs(other_layout: bool) -> None:
    ours, reference = parameters(torch.float64), parameters(torch.float64)
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    optimizers = AdamW(ours, **options), torch.optim.AdamW(reference, foreach=False, **options)
    for step in range(20):
        for optimizer, ps in zip(optimizers, (ours, reference)):
            train(optimizer, ps, range(step, step + 1))
        if other_layout and step == 10:  # as a checkpoint from elsewhere brings it
            for state in optimizers[0].state.values():
                state["exp_avg"] = state["exp_avg"].contiguous()
        assert distance(ours, reference) < 1e-12


def test_adamw_walks_along_memory() -> None:
    """What torch's kernel would copy is handed over as a contiguous view."""
    ours = parameters(torch.float32)
    assert any(not p.is_contiguous() for p in ours), "there is a decoder among them"
    optimizer = AdamW(ours)
    train(optimizer, ours, range(1))
    for p in ours:
        p.grad = torch.zeros_like(p)
    lists: list[list[torch.Tensor]] = [[] for _ in range(6)]
    optimizer._init_group(optimizer.param_groups[0], *lists)
    for tensors in lists[:4]:
        assert [t.data_ptr() for t in tensors]
        assert all(t.is_contiguous() for t in tensors)
    assert [t.data_ptr() for t in lists[0]] == [p.data_ptr() for p in ours]

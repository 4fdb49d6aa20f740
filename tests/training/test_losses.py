"""The parts of the loss against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.training.losses import (
    AuxKConfig,
    L1Config,
    LossConfig,
    PreActivationConfig,
    TanhConfig,
    auxiliary_tokens,
    auxk_loss,
    l1_penalty,
    loss_parts,
    normalized_error,
    pre_activation_penalty,
    reconstruction_loss,
    tanh_penalty,
)
from clt_lightning.transcoder import AuxiliaryRequest, Codes, TopK
from tests.gradients import gradient
from tests.transcoder.conftest import MakeCLT

Z = torch.tensor([[[1.0, 0.0, -2.0], [0.0, 0.0, 3.0]], [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])  # (2 layers, 2 tokens, 3)
NORMS = torch.tensor([[1.0, 5.0, 0.5], [2.0, 3.0, 1.0]])


def test_reconstruction_is_the_mean_fvu() -> None:
    y = torch.tensor([[[1.0, 2.0]], [[0.0, 4.0]]])
    loss = reconstruction_loss(y, torch.zeros_like(y), torch.tensor([5.0, 8.0]), None)
    assert float(loss) == pytest.approx((1 + 2) / 2)
    weighted = reconstruction_loss(y, torch.zeros_like(y), torch.tensor([5.0, 8.0]), [3.0, 1.0])
    assert float(weighted) == pytest.approx((1 * 1.5 + 2 * 0.5) / 2)
    with pytest.raises(UserError, match="layer_weights needs 2 weights"):
        reconstruction_loss(y, y, torch.ones(2), [1.0])


@pytest.mark.parametrize("dense", [False, True])
def test_penalties_weigh_codes_by_the_concatenated_norm(dense: bool) -> None:
    codes = Codes([None, None], list(Z)) if dense else Codes.from_dense(Z)
    weighed = torch.tensor([1.0, 1.0, 1.5, 3.0])  # |z| x norm of the four active codes
    assert float(l1_penalty(codes, NORMS)) == pytest.approx(float(weighed.sum()) / 2 / 2)
    assert float(tanh_penalty(codes, NORMS, 4.0)) == pytest.approx(float(torch.tanh(4 * weighed).sum()) / 2 / 2)


def test_pre_activation_penalty() -> None:
    pre = [torch.tensor([[0.0, -1.0]]), torch.tensor([[2.0, 0.5]])]
    norms = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    # depths below 1: (1, 2) and (0, 0.5)
    assert float(pre_activation_penalty(pre, 1.0, norms)) == pytest.approx((1 * 1 + 2 * 2 + 0.5 * 4) / 2)


def test_auxk_rebuilds_the_detached_residual_without_bias() -> None:
    """Mistake 7: residual detached, bias not counted twice, the main loss's scale, the coefficient once."""
    y = torch.tensor([[[3.0, 0.0]]])
    y_hat = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    auxiliary = torch.tensor([[[0.5, 0.0]]], requires_grad=True)
    loss = auxk_loss(y, y_hat, auxiliary, torch.tensor([4.5]))
    assert loss.item() == pytest.approx((2 - 0.5) ** 2 / 4.5)
    loss.backward()
    assert y_hat.grad is None
    assert auxiliary.grad is not None


def test_auxk_perfect_dead_features_give_zero(make_clt: MakeCLT) -> None:
    """Planted: the dead feature's decoder is the residual itself."""
    clt = make_clt(n_layers=1, d_model=2, n_features=2, activation=TopK(1), scales=False)
    with torch.no_grad():
        clt.W_enc[0].copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        clt.b_enc.zero_()
        clt.b_dec.fill_(7.0)
        clt.W_dec[0].copy_(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    x = torch.tensor([[[2.0, 1.0]]], dtype=torch.float64)
    request = AuxiliaryRequest(torch.tensor([[False, True]]), 5, torch.tensor([0]))
    out = clt(x, auxiliary=request)
    y = torch.tensor([[[9.0, 8.0]]], dtype=torch.float64)
    config = LossConfig(auxk=AuxKConfig(coefficient=0.5))
    parts = loss_parts(config, clt, y, out, step=0, auxiliary_tokens=request.tokens)
    torch.testing.assert_close(out.y_hat, torch.tensor([[[9.0, 7.0]]], dtype=torch.float64))
    assert float(parts["reconstruction"]) == pytest.approx(1.0)
    assert float(parts["auxk"]) == 0.0
    with torch.no_grad():
        clt.W_dec[0][1] = 0
    parts = loss_parts(config, clt, y, clt(x, auxiliary=request), step=0, auxiliary_tokens=request.tokens)
    assert float(parts["auxk"]) == pytest.approx(0.5 * 1.0)


@pytest.mark.parametrize(
    ("fraction", "k", "dead", "live", "expected"),
    [
        (0.3, 5, 100, 64, 30),  # as it is said
        (None, 32, 100, 8, 12),  # 0.5 x 8 live codes / 32 dead ones at work = 1 / 8, of 100 tokens
        (None, 32, 16, 4, 12),  # no more dead ones than there are: 0.5 x 4 / 16
        (None, 4, 100, 64, 25),  # at most a quarter of the tokens
        (0.001, 4, 100, 64, 1),  # at least one
    ],
)
def test_tokens_that_auxk_is_computed_on(fraction: float | None, k: int, dead: int, live: int, expected: int) -> None:
    assert auxiliary_tokens(AuxKConfig(token_fraction=fraction), 100, k, dead, live) == expected


def test_weights_that_cannot_be_are_named() -> None:
    y = torch.ones(2, 3, 1)
    for weights in ([1.0], [1.0, 2.0, 3.0], [0.0, 0.0], [1.0, -1.0], [-1.0, -2.0]):
        with pytest.raises(UserError, match="needs 2 weights with a positive sum"):
            reconstruction_loss(y, y, torch.ones(2), weights)
    assert float(reconstruction_loss(y, 0 * y, torch.ones(2), [0.0, 5.0])) == pytest.approx(1.0)


def test_warm_up_and_the_sum_of_parts(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=TopK(4))
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    config = LossConfig(
        l1=L1Config(0.1, warmup_steps=10), tanh=TanhConfig(0.2), pre_activation=PreActivationConfig(0.3)
    )
    out = clt(x, want_pre=True)
    first = loss_parts(config, clt, x, out, step=0)
    full = loss_parts(config, clt, x, out, step=9)
    later = loss_parts(config, clt, x, out, step=500)
    assert set(first) == {"reconstruction", "l1", "tanh", "pre_activation"}
    assert float(first["l1"]) == pytest.approx(float(full["l1"]) / 10)
    assert float(full["l1"]) == pytest.approx(float(later["l1"]))
    assert float(first["tanh"]) == pytest.approx(float(later["tanh"]))


def test_zero_decoders_give_finite_gradients(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=TopK(4))
    with torch.no_grad():
        for W in clt.W_dec:
            W.zero_()
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    parts = loss_parts(LossConfig(l1=L1Config(0.1)), clt, x, clt(x), step=0)
    torch.stack(list(parts.values())).sum().backward()
    assert all(gradient(p).isfinite().all() for p in clt.parameters())


def test_bad_coefficients_are_named() -> None:
    with pytest.raises(UserError, match=r"loss\.tanh"):
        LossConfig(tanh=TanhConfig(-1.0))
    with pytest.raises(UserError, match=r"loss\.auxk\.token_fraction"):
        LossConfig(auxk=AuxKConfig(token_fraction=0))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_normalized_error_and_its_gradients(tokens: int) -> None:
    y, y_hat = torch.randn(2, 3, tokens, 4, dtype=torch.float64, requires_grad=True).unbind(0)
    variance = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    expected = ((y - y_hat) ** 2).sum(2).sum(1) / max(tokens, 1) / variance
    torch.testing.assert_close(normalized_error(y, y_hat, variance), expected, rtol=1e-12, atol=0)
    if tokens:
        torch.autograd.gradcheck(lambda a, b: normalized_error(a, b, variance), (y, y_hat))

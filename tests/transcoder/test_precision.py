"""Autocast: the encoder's product alone is in low precision, and it only chooses."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.transcoder import Activation, BatchTopK, JumpReLU, TopK, precision
from tests.transcoder.conftest import MakeCLT


@pytest.mark.parametrize("activation", [TopK(4), BatchTopK(4), JumpReLU(0.3, 0.4)], ids=lambda a: type(a).__name__)
def test_values_are_exact_where_the_choice_agrees(
    make_clt: MakeCLT, monkeypatch: pytest.MonkeyPatch, activation: Activation
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies", lambda dtype: True)
    model = make_clt(activation=activation, dtype=torch.float32, n_features=64, backend="sparse")
    x = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    full = model.encode(x).dense()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    low = out.codes.dense()
    assert low.dtype == out.y_hat.dtype == torch.float32
    both = (full != 0) & (low != 0)
    assert both.sum() > 0.8 * (full != 0).sum()
    torch.testing.assert_close(low[both], full[both], rtol=1e-5, atol=1e-5)
    out.y_hat.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_a_cpu_without_bf16_keeps_full_precision(make_clt: MakeCLT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies", lambda dtype: False)
    model = make_clt(activation=TopK(4), dtype=torch.float32)
    x = torch.randn(3, 50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(x).dense(), model.encode(x).dense())
        inside = model(x).y_hat
    assert torch.equal(inside, model(x).y_hat)

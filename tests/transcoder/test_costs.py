"""The choice of path, and how often a step waits for its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clt_lightning.training.losses import LossConfig, loss_parts
from clt_lightning.transcoder import AuxiliaryRequest, CrossLayerTranscoder, TopK, costs, decoders, precision
from clt_lightning.transcoder.costs import RATES, sparse_below
from clt_lightning.transcoder.reference import decode_dense
from tests.gradients import gradient

BF16, FP32 = torch.bfloat16, torch.float32


def test_the_shares_of_a_gpu() -> None:
    """ViT-B at k 64: with tensor cores 6,144 features are dense and 24,576 sparse; without them both are sparse."""
    bf16, fp32 = sparse_below("cuda", BF16, 4096), sparse_below("cuda", FP32, 4096, tf32=False)
    assert 64 / 24576 < bf16 < 64 / 6144
    assert fp32 > 64 / 6144
    assert bf16 < sparse_below("cuda", FP32, 4096, tf32=True) < fp32
    assert sparse_below("cuda", BF16, 64) > bf16, "few tokens: the casts of the weights weigh more"
    assert sparse_below("cpu", FP32, 512) == pytest.approx(0.25)
    assert sparse_below("xpu", BF16, 4096) == bf16


def noting(made: list[str], name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        made.append(name)
        return plain(*args)

    return call


def test_the_choice_is_made_by_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with fast products decodes TopK's codes densely: the same numbers, from pairs all the same."""
    x = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for fast in (False, True):
        if fast:
            quick = costs.Rates(dict.fromkeys((FP32, torch.float64), 1000000000000000.0), 1e9, 1e9)
            monkeypatch.setitem(RATES, "cpu", quick)
        made: list[str] = []
        for name in ("decode_dense", "decode_pairs"):
            monkeypatch.setattr(decoders, name, noting(made, name, getattr(decoders, name)))
        model = CrossLayerTranscoder(3, 8, 64, TopK(4), seed=0).double()
        with torch.no_grad():
            for i, W in enumerate(model.W_dec):
                W.copy_(torch.randn(W.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64))
        out = model(x)
        out.y_hat.sin().sum().backward()
        assert made[0] == ("decode_dense" if fast else "decode_pairs")
        assert not out.codes.is_dense(0)
        found.append([out.y_hat.detach(), *(gradient(p) for p in (*model.W_dec, *model.W_enc, model.b_enc))])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_dense_products_take_the_type_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert costs.dense_type("cpu", BF16) is None
    assert costs.dense_type("cuda", BF16) == BF16
    generator = torch.Generator().manual_seed(0)
    codes = [torch.rand(20, 30, generator=generator) for _ in range(2)]
    decoders = [torch.randn(30, 2 - i, 8, generator=generator, requires_grad=True) for i in range(2)]
    whole, low = decode_dense(codes, decoders, 2), decode_dense(codes, decoders, 2, BF16)
    assert low.dtype == FP32
    assert 0 < float((low - whole).norm() / whole.norm()) < 0.01
    low.sum().backward()
    assert all(gradient(W).dtype == FP32 for W in decoders)


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers and shapes that depend on values."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        # bincount reads the largest value, a mask as an index is searched, tolist of many values is one transfer
        masks = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for arg in args[1:2]
            for i in (arg if isinstance(arg, list | tuple) else [arg])
        )
        if name.startswith(self.names) or masks:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_a_step_hardly_waits_for_its_device(low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """TopK with AuxK: at most 5 times, whatever the layers; forward, loss, backward, clipping, what has fired.

    4 are counted, since the one `tolist` of all layers' open rows is not seen on a CPU."""
    monkeypatch.setattr(precision, "cpu_multiplies", lambda dtype: True)
    model = CrossLayerTranscoder(8, 16, 256, TopK(4), seed=0)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(8, 60, 16, generator=generator) for _ in range(2))
    dead = torch.rand(8, 256, generator=generator) < 0.2
    request = AuxiliaryRequest(dead, 8, torch.arange(0, 60, 3), tuple(dead.sum(1).tolist()))
    with Waits() as waits:
        with torch.autocast("cpu", BF16, enabled=low):
            out = model(x, auxiliary=request)
            parts = loss_parts(LossConfig(), model, y, out, 0, request.tokens)
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        fired, l0 = out.codes.fired(), out.codes.l0()
    assert len(waits.seen) <= 4, waits.seen
    assert bool((fired.sum(1) > 0).all())
    assert l0.shape == (8, 60)


def test_the_count_sees_what_waits() -> None:
    x = torch.tensor([1.0, 0.0, 2.0])
    tries: list[Any] = [
        lambda: x.sum().item(),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: bool(x.any()),
        lambda: int(x[0]),
    ]
    for what in tries:
        with Waits() as waits:
            what()
        assert waits.seen

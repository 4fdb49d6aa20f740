"""How often the host waits for a GPU in a step: counted on a CPU that takes itself for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from clt_lightning.training.losses.reconstruction import reconstruction_loss
from clt_lightning.transcoder import (
    AbsTopK,
    Activation,
    AuxiliaryRequest,
    BatchTopK,
    CrossLayerTranscoder,
    TopK,
    clt,
)
from tests.gradients import gradient
from tests.waits import OnGPU

LAYERS, D, F, TOKENS = 5, 16, 512, 96


def step(
    activation: Activation, low: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[Tensor]]:
    """The waits of a forward, loss and backward, and the reconstruction with all gradients."""
    monkeypatch.setenv("CLT_LIGHTNING_KERNELS", "torch")

    @contextmanager
    def precision(device_type: str) -> Iterator[torch.dtype | None]:
        yield torch.bfloat16 if low else None

    monkeypatch.setattr(clt, "full_precision", precision)
    model = CrossLayerTranscoder(LAYERS, D, F, activation, backend="sparse", seed=0, n_positions=12)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for W in model.W_dec:
            W.copy_(torch.randn(W.shape, generator=generator) / 8)
    x, y = (torch.randn(LAYERS, TOKENS, D, generator=generator) for _ in range(2))
    dead = torch.rand(LAYERS, F, generator=generator) < 0.1
    request = AuxiliaryRequest(dead, 4, torch.arange(0, TOKENS, 3), tuple(dead.sum(1).tolist()))
    if not gpu:
        waits = []
        out = model(x, auxiliary=request)
    else:
        with OnGPU() as mode:
            out = model(x, auxiliary=request)
            out.codes.l0()
            model.fired(out.codes)
        waits = mode.waits
    assert out.auxiliary is not None
    with OnGPU() if gpu else torch.enable_grad() as mode:
        loss = reconstruction_loss(y, out.y_hat, torch.full((LAYERS,), float(D)), None) + out.auxiliary.square().mean()
        torch.autograd.backward(loss)  # `Tensor.backward` would hide what runs in it
    waits += mode.waits if mode is not None else []
    found = [out.y_hat.detach(), *(gradient(p) for p in model.parameters()), *activation.buffers()]
    return waits, [t.clone() for t in found]


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", [TopK, AbsTopK, BatchTopK, lambda k: BatchTopK(k, cls_weight=4.0)])
def test_a_step_waits_once_at_most_and_gives_the_same(
    kind: Callable[[int], Activation], low: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, found = step(kind(8), low, True, monkeypatch)
    assert waits == (["tolist"] if low else [])  # whether the product in bf16 will do, for all layers at once
    _, expected = step(kind(8), low, False, monkeypatch)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_batch_top_k_of_fewer_positive_ones_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    pre = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) - 1.5
    kept = []
    for gpu in (False, True):
        activation = BatchTopK(16)
        activation.build(2, 64)
        with OnGPU() if gpu else torch.no_grad():
            for shift in (0.0, 0.3, -9.0):  # at last there is none
                pairs = activation.select(pre + shift, 1)
                assert not isinstance(pairs, Tensor)
        codes = torch.zeros_like(pre)
        pairs = activation.select(pre, 1)
        assert not isinstance(pairs, Tensor)
        codes[pairs.tokens, pairs.features] = torch.relu(pairs.entries(pre))
        kept.append((codes, activation.threshold.clone(), activation.updates.clone()))
    for a, b in zip(*kept, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda t: t.sum().item(), "item"),
        (lambda t: t.tolist(), "tolist"),
        (lambda t: bool((t > 0).any()), "__bool__"),
        (lambda t: int(t.sum()), "__int__"),
        (lambda t: float(t[0]), "__float__"),
        (lambda t: t.nonzero(), "nonzero"),
        (lambda t: t[t > 0], "__getitem__"),
        (lambda t: t.masked_select(t > 0), "masked_select"),
        (lambda t: torch.bincount(t.long()), "bincount"),
        (lambda t: torch.where(t > 0), "where"),
        (lambda t: t.new_tensor([1.0]), "new_tensor"),
        (lambda t: torch.repeat_interleave(t, t.long()), "repeat_interleave"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_the_count_sees_every_kind_of_wait(work: Callable[[Tensor], object], name: str) -> None:
    t = torch.arange(4.0)
    with OnGPU() as mode:
        torch.where(t > 0, t, 0.0)
        t.sum() + t[1:3].amax()
        assert not mode.waits
        work(t)
    assert mode.waits == [name]

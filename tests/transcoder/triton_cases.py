"""Cases of the Triton kernels. `test_triton.py` runs this file in a process of its own: by Triton's interpreter on CPU
tensors (which must be chosen before Triton is imported), or compiled on a CUDA device.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clt_lightning.transcoder import CrossLayerTranscoder, TopK, triton_kernels
from clt_lightning.transcoder.feature_chunks import FeatureChunks
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.sparse import bag_sum, decode_pairs, encode_pairs, pair_dots, scatter_rows
from tests.transcoder.conftest import MakeCLT

DEVICE = os.environ.get("CLT_CASES_DEVICE", "cpu")
# rounding of the result's type (the sums themselves are in fp32 or float64), relative to the sum of magnitudes
# (Triton's interpreter cuts fp32 off to bf16, the device rounds to nearest)
BF16 = 2**-7 if DEVICE == "cpu" else 2**-8
BOUNDS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: BF16, torch.float16: 2**-10}
_too_large = pytest.mark.skipif(DEVICE == "cpu", reason="too large for the interpreter")


def needs_gpu(test: Callable[[], None]) -> Callable[[], None]:
    return pytest.mark.gpu(_too_large(test))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def ragged(counts: list[int], n_features: int, seed: int = 0, among: int | None = None) -> Pairs:
    """Pairs with these numbers per token; features repeat, and those from `among` on have none."""
    features = torch.randint(0, among or n_features, (sum(counts),), generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return Pairs(features.to(DEVICE), offsets.to(DEVICE), n_features)


def target_major(n_features: int, targets: int, width: int, dtype: torch.dtype) -> Tensor:
    """A table in the memory layout of W_dec."""
    return randn(targets, n_features, width, seed=1, dtype=dtype).transpose(0, 1)


def dense(pairs: Pairs, values: Tensor) -> Tensor:
    z = torch.zeros(pairs.n_tokens, pairs.n_features, dtype=torch.float64, device=DEVICE)
    return z.index_put((pairs.tokens, pairs.features), values.double(), accumulate=True)


def assert_near(ours: Tensor, reference: Tensor, magnitude: Tensor, bound: float) -> None:
    assert ours.shape == reference.shape
    assert bool(((ours.double() - reference).abs() <= bound * magnitude + 1e-300).all())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("width", [5, 300])
def test_add_bags(dtype: torch.dtype, width: int) -> None:
    pairs = ragged([0, 11, 1], 6)
    values, table = randn(12), target_major(6, 2, width, dtype)
    out = randn(2, 3, width, seed=2, dtype=torch.promote_types(dtype, torch.float32))
    z, W = dense(pairs, values), table.double().transpose(0, 1)
    reference, magnitude = out.double() + z @ W, out.double().abs() + z.abs() @ W.abs()
    triton_kernels.add_bags(out, table, pairs, values.to(out.dtype))
    assert_near(out, reference, magnitude, 1e-14 if dtype == torch.float64 else 1e-6)


def test_padding_is_not_read() -> None:
    pairs = Pairs.rectangular(torch.tensor([[0, 1], [2, 1]], device=DEVICE), 3)
    table = randn(3, 4, dtype=torch.float32)
    table[1] = torch.nan
    values = torch.tensor([2.0, 0.0, 3.0, 0.0], device=DEVICE)
    out = torch.empty(1, 2, 4, device=DEVICE)
    triton_kernels.add_bags(out, table[:, None], pairs, values, add=False)
    assert torch.equal(out[0], torch.stack([2 * table[0], 3 * table[2]]))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("dots", "sums"), [(True, True), (True, False), (False, True)])
def test_gradients(dtype: torch.dtype, dots: bool, sums: bool) -> None:
    pairs = ragged([3, 0, 9, 1], 5, among=4)  # feature 4 has no pair: its row must be written all the same
    order, _ = pairs.by_feature
    values, table, G = randn(13), target_major(5, 2, 5, dtype), randn(2, 4, 5, seed=2, dtype=dtype)
    out = torch.full_like(table, torch.nan)
    ours_dots, ours_sums = triton_kernels.gradients(
        G, pairs, table if dots else None, values.to(dtype)[order] if sums else None, out if sums else None
    )
    z, g, W = dense(pairs, values.to(dtype)), G.double(), table.double()
    if dots:
        assert ours_dots is not None
        chosen, rows = W[pairs.features].transpose(0, 1)[:, order], g[:, pairs.tokens][:, order]
        bound = 1e-14 if dtype == torch.float64 else 1e-6
        assert_near(ours_dots, (chosen * rows).sum((0, 2)), (chosen * rows).abs().sum((0, 2)), bound)
    if sums:
        assert ours_sums is out
        reference = torch.einsum("nf,tnd->ftd", z, g)
        assert_near(out, reference, torch.einsum("nf,tnd->ftd", z.abs(), g.abs()), BOUNDS[dtype])
    assert (ours_dots is not None, ours_sums is not None) == (dots, sums)


@pytest.mark.parametrize("width", [3, 260])
def test_long_features_in_chunks(width: int) -> None:
    """Feature 1 takes most pairs and several chunks; the others fit in one, or have none."""
    features = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 3, 1, 1, 1, 2, 2, 2, 2, 2], device=DEVICE)
    pairs = Pairs(features, torch.tensor([0, 4, 4, 9, 17], device=DEVICE), 5)
    pairs.__dict__["feature_chunks"] = FeatureChunks.of(pairs.feature_major[0], 17, size=4)
    order, _ = pairs.by_feature
    values, G = randn(17), randn(1, 4, width, seed=2)
    table = target_major(5, 1, width, torch.float64)
    dots, sums = triton_kernels.gradients(G, pairs, table, values[order])
    assert dots is not None
    assert sums is not None
    torch.testing.assert_close(sums[:, 0], dense(pairs, values).T @ G[0], rtol=1e-12, atol=1e-12)
    reference = (table[features, 0] * G[0, pairs.tokens]).sum(1)[order]
    torch.testing.assert_close(dots, reference, rtol=1e-12, atol=1e-12)
    again = triton_kernels.gradients(G, pairs, table, values[order])
    for first, second in zip((dots, sums), again):
        assert second is not None
        assert torch.equal(first, second)


@pytest.mark.parametrize("counts", [[], [0, 0]], ids=["no tokens", "no pairs"])
def test_nothing_active(counts: list[int]) -> None:
    pairs = ragged(counts, 3)
    values = torch.zeros(0, device=DEVICE, requires_grad=True)
    W = target_major(3, 2, 4, torch.float32).requires_grad_(True)
    y = decode_pairs(2, [pairs], [values], [W])
    y.sum().backward()
    assert y.shape == (2, len(counts), 4)
    assert not y.any()
    assert W.grad is not None
    assert not W.grad.any()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_autograd_against_torch_operations(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bound: float) -> None:
    all_pairs = [ragged([2, 0, 3], 4, seed) for seed in range(2)]
    results = []
    for kernels in ("triton", "torch"):
        monkeypatch.setenv("CLT_LIGHTNING_KERNELS", kernels)
        x, W, b = randn(3, 6, dtype=dtype), randn(4, 6, seed=3, dtype=dtype), randn(4, seed=4, dtype=dtype)
        inputs = [t.requires_grad_(True) for t in (x, W, b)]
        decoders = [target_major(4, 2 - i, 6, dtype).requires_grad_(True) for i in range(2)]
        values = [encode_pairs(randn(5, seed=i, dtype=dtype), x, W, b, all_pairs[i]).tanh() for i in range(2)]
        y = decode_pairs(2, all_pairs, values, decoders)
        gradients = torch.autograd.grad(y.sin().sum(), [*inputs, *decoders])
        assert gradients[3].stride() == decoders[0].stride()
        functions = (
            bag_sum(decoders[0][:, 1], all_pairs[0], values[0]),
            scatter_rows(all_pairs[0], values[0], x),
            pair_dots(all_pairs[0], [W], [x]),
        )
        results.append([y, *gradients, *functions])
    for ours, reference in zip(*results):
        torch.testing.assert_close(ours, reference, rtol=bound, atol=bound)


def test_16_bit_decoders_are_added_up_in_fp32() -> None:
    """256 + eight times 0.5: in bf16 every single addition would be lost."""
    sources = 9
    pairs = Pairs.rectangular(torch.zeros(1, 1, dtype=torch.int64, device=DEVICE), 1)
    tables = [
        torch.full((1, 1, 1), 256.0 if i == 0 else 0.5, dtype=torch.bfloat16, device=DEVICE) for i in range(sources)
    ]
    out = torch.zeros(1, 1, 1, device=DEVICE)
    for table in tables:
        triton_kernels.add_bags(out, table, pairs, torch.ones(1, device=DEVICE, dtype=torch.bfloat16))
    assert out.item() == 260


def test_training_step_equals_the_dense_path(make_clt: MakeCLT) -> None:
    x = randn(2, 3, 4, seed=5)
    results = []
    for backend in ("sparse", "dense"):
        clt: CrossLayerTranscoder = make_clt(2, 4, 6, activation=TopK(2), backend=backend).to(DEVICE)
        out = clt(x)
        out.y_hat.sin().sum().backward()
        results.append([out.y_hat, *(p.grad for p in clt.parameters())])
    for ours, reference in zip(*results):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@needs_gpu
def test_large_and_repeatable() -> None:
    """The sizes of a real step with a few very popular features, against float64, and twice the same bits."""
    tokens, n_features, width, k = 4096, 6144, 768, 64
    skewed = (torch.rand(tokens, k, generator=torch.Generator().manual_seed(0)) ** 4 * n_features).long()
    pairs = Pairs.rectangular(skewed.to(DEVICE), n_features)
    values, table = randn(tokens * k, dtype=torch.float32), target_major(n_features, 3, width, torch.float32)
    G, order = randn(3, tokens, width, seed=2, dtype=torch.float32), pairs.by_feature[0]
    z = dense(pairs, values)
    runs = []
    for _ in range(2):
        out = torch.zeros(3, tokens, width, device=DEVICE)
        triton_kernels.add_bags(out, table, pairs, values)
        dots, sums = triton_kernels.gradients(G, pairs, table, values[order])
        assert dots is not None
        assert sums is not None
        runs.append([out, dots, sums])
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    out, dots, sums = runs[0]
    for t in range(3):
        W, g = table[:, t].double(), G[t].double()
        assert_near(out[t], z @ W, z.abs() @ W.abs(), 1e-6)
        assert_near(sums[:, t], z.T @ g, z.abs().T @ g.abs(), 1e-6)
    products = torch.stack([(G[t].double() @ table[:, t].double().T)[pairs.tokens, pairs.features] for t in range(3)])
    reference = products.sum(0)
    torch.testing.assert_close(dots.double(), reference[order], rtol=1e-4, atol=1e-3)


@needs_gpu
def test_tables_beyond_2_to_the_31_entries() -> None:
    n_features = 2**31 // (12 * 768) + 1000
    table = torch.zeros(12, n_features, 768, dtype=torch.bfloat16, device=DEVICE).transpose(0, 1)
    table[-1] = randn(12, 768, seed=1, dtype=torch.bfloat16)
    pairs = Pairs.rectangular(torch.full((2, 1), n_features - 1, device=DEVICE), n_features)
    out = torch.zeros(12, 2, 768, device=DEVICE)
    triton_kernels.add_bags(out, table, pairs, torch.ones(2, device=DEVICE))
    torch.testing.assert_close(out[:, 0], table[-1].float())
    triton_kernels.gradients(out, pairs, sorted_values=torch.ones(2, device=DEVICE), out=table)
    torch.testing.assert_close(table[-1].float(), 2 * out[:, 0], rtol=0.01, atol=0.01)

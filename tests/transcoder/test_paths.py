"""The sparse path against the dense one, and both against the formula written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.transcoder import (
    AbsTopK,
    Activation,
    AuxiliaryRequest,
    BatchTopK,
    Codes,
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    TopK,
)
from clt_lightning.transcoder.decoders import Topology
from clt_lightning.transcoder.reference import decode_dense
from tests.gradients import gradient
from tests.transcoder.conftest import MakeCLT

ACTIVATIONS = [ReLU(), TopK(4), TopK(50), AbsTopK(4), BatchTopK(4), JumpReLU(0.3, 0.4)]
TOPOLOGIES = ["cross_layer", "per_layer", "sae"]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) if b.numel() else 0.0


def run(clt: CrossLayerTranscoder, x: torch.Tensor, aux: AuxiliaryRequest | None) -> list[torch.Tensor]:
    """Outputs and all gradients of a loss that touches every output."""
    x = x.clone().requires_grad_(True)
    out = clt(x, auxiliary=aux)
    loss = out.y_hat.sin().sum() + (out.codes.dense() ** 2).sum()
    if out.auxiliary is not None:
        loss = loss + out.auxiliary.cos().sum()
    loss.backward()
    return [out.y_hat.detach(), out.codes.dense().detach(), x.grad, *(p.grad for p in clt.parameters())]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: f"{type(a).__name__}{getattr(a, 'k', '')}")
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("aux", [False, True], ids=["", "auxk"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_sparse_equals_dense(
    make_clt: MakeCLT, activation: Activation, topology: str, aux: bool, dtype: torch.dtype
) -> None:
    options = {"activation": activation, "topology": topology, "skip": topology != "sae"}
    sparse = make_clt(backend="sparse", dtype=dtype, **options)
    # the reference is in float64 always
    dense = make_clt(backend="dense", **options)
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(3, 17, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    request = None
    if aux:
        dead = torch.zeros(3, 20, dtype=torch.bool)
        dead[0, [1, 5, 7]] = dead[2, [0, 19]] = True
        request = AuxiliaryRequest(dead, 2, torch.tensor([0, 3, 11]))
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    for a, b in zip(run(sparse, x.to(dtype), request), run(dense, x, request)):
        assert relative(a.double(), b) < bound


@pytest.mark.parametrize("tokens", [0, 1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: f"{type(a).__name__}{getattr(a, 'k', '')}")
def test_few_tokens(make_clt: MakeCLT, activation: Activation, tokens: int) -> None:
    x = torch.randn(3, tokens, 8, dtype=torch.float64)
    outs = [run(make_clt(activation=activation, backend=backend), x, None) for backend in ("sparse", "dense")]
    for a, b in zip(*outs):
        assert relative(a, b) < 1e-10


def test_all_codes_zero(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=TopK(4), backend="sparse")
    with torch.no_grad():
        clt.b_enc.fill_(-1000)
    out = clt(torch.randn(3, 5, 8, dtype=torch.float64))
    out.y_hat.sum().backward()
    assert out.codes.l0().sum() == 0
    torch.testing.assert_close(out.y_hat, (clt.b_dec * clt.y_scale[:, None])[:, None].expand(3, 5, 8))
    assert all(W.grad.abs().sum() == 0 for W in (*clt.W_enc, *clt.W_dec))


def test_formula_written_out(make_clt: MakeCLT) -> None:
    """One token, loops over everything."""
    clt = make_clt(activation=ReLU(), skip=True, scales=False)
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    assert clt.W_skip is not None
    expected = torch.zeros(3, 4, 8, dtype=torch.float64)
    for n in range(4):
        z = [torch.relu(clt.W_enc[i] @ x[i, n] + clt.b_enc[i]) for i in range(3)]
        for j in range(3):
            expected[j, n] = clt.bias(j) + clt.W_skip[j] @ x[j, n]
            for i in range(j + 1):
                for f in range(20):
                    expected[j, n] += z[i][f] * clt.W_dec[i][f, j - i]
    torch.testing.assert_close(clt(x).y_hat, expected.detach(), rtol=1e-12, atol=1e-12)


def test_duplicate_pairs_add_up(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=TopK(2), scales=False)
    values = torch.rand(3, 5, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(0, 20, (3, 5, 3))
    indices[..., 1] = indices[..., 0]
    codes = Codes.from_topk(values, indices, 20)
    sparse = clt.decode(codes)
    dense = clt.decode(codes.dense())
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad(sparse.sin().sum(), values)
    (reference,) = torch.autograd.grad(dense.sin().sum(), values)
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


def test_threads_do_not_change_a_bit(make_clt: MakeCLT) -> None:
    before = torch.get_num_threads()
    x = torch.randn(3, 400, 8)
    results = []
    try:
        for threads in (1, 8):
            torch.set_num_threads(threads)
            results.append(run(make_clt(activation=TopK(4), n_features=300, dtype=torch.float32), x, None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 4),
    d=st.integers(1, 6),
    features=st.integers(1, 9),
    tokens=st.integers(0, 6),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**20),
    topology=st.sampled_from(["cross_layer", "per_layer"]),
)
def test_any_shape(layers: int, d: int, features: int, tokens: int, k: int, seed: int, topology: Topology) -> None:
    outs = []
    for backend in ("sparse", "dense"):
        clt = CrossLayerTranscoder(layers, d, features, TopK(k), topology, backend=backend, seed=seed).double()
        with torch.no_grad():
            for W in clt.W_dec:
                W.copy_(torch.randn(W.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        x = torch.randn(layers, tokens, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        outs.append(run(clt, x, None))
    for a, b in zip(*outs):
        assert relative(a, b) < 1e-10


def test_auto_takes_the_dense_path_for_dense_codes(make_clt: MakeCLT) -> None:
    x = torch.randn(3, 10, 8, dtype=torch.float64)
    assert make_clt(activation=ReLU(), backend="auto").encode(x).is_dense(0)
    assert not make_clt(activation=TopK(2), backend="auto").encode(x).is_dense(0)


@pytest.mark.parametrize("activation", [ReLU(), BatchTopK(15), JumpReLU(0.01)], ids=lambda a: type(a).__name__)
def test_a_backend_that_is_forced_is_taken(make_clt: MakeCLT, activation: Activation) -> None:
    """Whatever the density."""
    x = torch.randn(3, 10, 8, dtype=torch.float64)
    assert make_clt(activation=activation, backend="dense").encode(x).is_dense(2)
    assert not make_clt(activation=activation, backend="sparse").encode(x).is_dense(2)


def test_where_nothing_fires_gradients_are_zero(make_clt: MakeCLT) -> None:
    """Also in memory that still holds the gradients of the step before."""
    clt = make_clt(activation=JumpReLU(0.5, 0.1), backend="sparse")
    x = torch.randn(3, 30, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = (*clt.W_enc, *clt.W_dec)
    clt(x).y_hat.sin().sum().backward()
    assert all(gradient(W).abs().sum() > 0 for W in weights)
    clt.zero_grad(set_to_none=True)
    with torch.no_grad():
        clt.b_enc.fill_(-1000)
    out = clt(x)
    assert out.codes.layer(0)[0].features.numel() == 0
    out.y_hat.sin().sum().backward()
    assert all(gradient(W).abs().sum() == 0 for W in weights)
    assert gradient(clt.b_enc).abs().sum() == 0
    assert gradient(clt.b_dec).abs().sum() > 0


def test_a_layer_that_nobody_writes_to_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    z, W = torch.randn(4, 5, generator=generator), torch.randn(5, 2, 3, generator=generator)
    y = decode_dense([z], [W], 3)
    torch.testing.assert_close(y, torch.stack([z @ W[:, 0], z @ W[:, 1], torch.zeros(4, 3)]))


def test_without_mkl(make_clt: MakeCLT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has no sparse product of its own (no MKL), bag-sums give the same gradients."""
    x = torch.randn(3, 30, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clt = make_clt(activation=TopK(4), backend="sparse")
    with_mkl = run(clt, x, None)
    clt.zero_grad()
    asked = []

    def unavailable() -> bool:
        asked.append(1)
        return False

    monkeypatch.setattr(torch.backends.mkl, "is_available", unavailable)
    without = run(clt, x, None)
    assert asked, "the question was put"
    for a, b in zip(without, with_mkl):
        assert relative(a, b) < 1e-12

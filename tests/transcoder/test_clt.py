"""The transcoder's public behaviour: contributions, normalisation, files, errors."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import (
    Activation,
    ActivationStatistics,
    BatchTopK,
    Codes,
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    StatisticsAccumulator,
    TopK,
)
from tests.gradients import gradient
from tests.transcoder.conftest import MakeCLT


def data(layers: int = 3, tokens: int = 200, d: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y with other means and sizes in every layer."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([0.01, 1.0, 50.0])[:layers, None, None]
    x = (torch.randn(layers, tokens, d, generator=g) + 2 * torch.randn(layers, 1, d, generator=g)) * sizes
    y = (torch.randn(layers, tokens, d, generator=g) + 5 * torch.randn(layers, 1, d, generator=g)) / sizes
    return x, y


def statistics(x: torch.Tensor, y: torch.Tensor) -> ActivationStatistics:
    sums = StatisticsAccumulator(x.shape[0], x.shape[2])
    for part in range(0, x.shape[1], 64):
        sums.update(x[:, part : part + 64], y[:, part : part + 64])
    return sums.result()


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
@pytest.mark.parametrize("kind", ["terms", "sums", "dense"])
def test_one_gradient_of_all_targets_is_that_of_slices(make_clt: MakeCLT, topology: str, kind: str) -> None:
    """Layer by layer, as a replaced forward decodes; the gradient keeps the weight's own layout in memory."""
    found = []
    for way in ("slices", "one gradient", "each its own"):
        clt = make_clt(topology=topology, activation=ReLU() if kind == "dense" else TopK(4), seed=4)
        with clt.one_gradient() if way == "one gradient" else nullcontext():
            codes = clt.encode(torch.randn(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
            assert codes.is_dense(0) == (kind == "dense")
            sources = [codes.slice(i) for i in range(3)]
            losses = []
            for j in range(3):
                if way == "slices":
                    z = [codes.dense_layer(i) @ clt.W_dec[i][:, j - i] for i in range(j + 1) if clt.writes(i, j)]
                    y = clt.y_scale[j] * torch.stack(z).sum(0)
                elif kind == "terms":
                    y = clt.layer_terms(sources[: j + 1], j).sum(0)
                else:
                    y = clt.layer_sum(sources[: j + 1], j)
                losses.append((j + 1) * y.square().sum())
        torch.stack(losses).sum().backward()
        found.append([gradient(p) for p in (*clt.W_dec, *clt.W_enc)])
        if way != "slices":
            assert all(gradient(W).transpose(0, 1).is_contiguous() for W in clt.W_dec)
    for plain, together, apart in zip(*found):
        torch.testing.assert_close(together, plain, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(apart, plain, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_main_forward_and_of_layers_add_up(make_clt: MakeCLT) -> None:
    """Written into one memory; also in a second step, and after a backward pass of a part alone."""
    x = torch.randn(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def both(clt: CrossLayerTranscoder) -> tuple[torch.Tensor, torch.Tensor]:
        main = clt(x).y_hat.sin().sum()
        codes = [clt.encode_layer(x[i], i) for i in range(2)]
        return main, clt.layer_sum(codes, 1).cos().sum()

    plain, shared = make_clt(activation=TopK(4)), make_clt(activation=TopK(4))
    for loss in both(plain):
        loss.backward()
    for step in range(3):
        with shared.one_gradient():
            main, later = both(shared)
        if step == 1:
            torch.autograd.grad(later, list(shared.W_enc), allow_unused=True, retain_graph=True)
        (main + later).backward()
        for a, b in zip(shared.parameters(), plain.parameters()):
            if b.grad is not None:
                torch.testing.assert_close(gradient(a), b.grad, rtol=1e-10, atol=1e-12)
        if step < 2:
            shared.zero_grad(set_to_none=True)


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
@pytest.mark.parametrize("skip", [False, True])
def test_contributions_sum_to_the_reconstruction(make_clt: MakeCLT, topology: str, skip: bool) -> None:
    clt = make_clt(topology=topology, skip=skip, activation=TopK(4))
    x = torch.randn(3, 11, 8, dtype=torch.float64)
    out = clt(x)
    for target in range(3):
        terms = clt.contributions(out.codes, target)
        assert terms.shape == (3, 11, 8)
        assert terms[target + 1 :].abs().sum() == 0
        total = terms.sum(0) + clt.bias(target) + clt.skip_term(x[target], target)
        torch.testing.assert_close(total, out.y_hat[target], rtol=1e-12, atol=1e-12)


def test_decode_takes_codes_and_dense_tensors(make_clt: MakeCLT) -> None:
    clt = make_clt(activation=TopK(4))
    x = torch.randn(3, 11, 8, dtype=torch.float64)
    codes = clt.encode(x)
    torch.testing.assert_close(clt.decode(codes), clt(x).y_hat)
    torch.testing.assert_close(clt.decode(codes.dense()), clt(x).y_hat)
    again = Codes.from_topk(codes.values, codes.indices, 20)
    torch.testing.assert_close(again.dense(), codes.dense())


def test_first_fvu_is_one() -> None:
    """After normalisation an untrained transcoder predicts the mean: FVU 1 in every layer."""
    x, y = data()
    clt = CrossLayerTranscoder(3, 8, 32, TopK(4), seed=0)
    clt.normalize(statistics(x, y))
    error = (y - clt(x).y_hat).double().square().sum((1, 2))
    fvu = error / (y.double() - y.double().mean(1, keepdim=True)).square().sum((1, 2))
    torch.testing.assert_close(fvu, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


def test_normalisation_brings_layers_to_one_size() -> None:
    x, y = data(tokens=4000)
    clt = CrossLayerTranscoder(3, 8, 32, TopK(4), seed=0)
    clt.normalize(statistics(x, y))
    norms = (x * clt.x_scale[:, None, None]).norm(dim=2).mean(1)
    assert ((norms / 8**0.5).log2().abs() <= 0.5 + 1e-6).all()
    centred = (y - clt.y_mean[:, None]) / clt.y_scale[:, None, None]
    assert (centred.var(dim=1).mean(1).sqrt().log2().abs() <= 0.51).all()
    # about half of all pre-activations are positive in every layer: no layer starts dead or saturated
    pre = torch.stack([clt.W_enc[i] @ (x[i] * clt.x_scale[i]).T + clt.b_enc[i][:, None] for i in range(3)])
    assert ((pre > 0).float().mean((1, 2)) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_learned_does_not_depend_on_the_scale_of_a_site(skip: bool) -> None:
    """Adam's steps are of one length in scaled units; there `b_dec` was once in the backbone's own."""
    learned = []
    for scale in (1.0, 2.0**-7):
        x, y = data()
        y = scale * y
        clt = CrossLayerTranscoder(3, 8, 32, TopK(4), skip=skip, seed=0)
        clt.normalize(statistics(x, y))
        optimizer = torch.optim.AdamW(clt.parameters(), lr=1e-2, weight_decay=0.0)
        for _ in range(4):
            optimizer.zero_grad()
            ((clt(x).y_hat - y).square().sum(2).mean(1) / clt.y_var).mean().backward()
            optimizer.step()
        with torch.no_grad():
            learned.append(clt(x).y_hat / scale)
            whole = clt.layer_sum({i: clt.encode_layer(x[i], i) for i in range(3)}, 2) + clt.rest_term(x[2], 2)
            torch.testing.assert_close(whole / scale, learned[-1][2])
    torch.testing.assert_close(learned[0], learned[1], rtol=1e-4, atol=1e-6)


def test_normalising_twice_is_refused() -> None:
    x, y = data()
    clt = CrossLayerTranscoder(3, 8, 32, TopK(4))
    clt.normalize(statistics(x, y))
    with pytest.raises(UserError, match="normalised already"):
        clt.normalize(statistics(x, y))


def test_statistics_do_not_depend_on_batching() -> None:
    x, y = data()
    whole = StatisticsAccumulator(3, 8)
    whole.update(x, y)
    parts = statistics(x, y)
    torch.testing.assert_close(whole.result().y_var, parts.y_var, rtol=1e-12, atol=0)
    expected = (y.double() - y.double().mean(1, keepdim=True)).square().sum(2).mean(1)
    torch.testing.assert_close(parts.y_var, expected, rtol=1e-10, atol=0)


def test_statistics_name_the_layer_with_nan() -> None:
    x, y = data()
    y[1, 3, 2] = float("nan")
    with pytest.raises(UserError, match="outputs y of layer 1"):
        statistics(x, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_feature": 3}, "unknown n_feature "),
        ({"activation": None}, "class_path"),
        ({"activation": {"class_path": "TopK", "init_args": {"width": 3}}}, "TopK takes k; got .*width"),
        ({"activation": {"class_path": "TopK", "init_args": {"k": "many"}}}, "TopK: .*many"),
        ({"activation": {"class_path": "TopQ"}}, "unknown activation 'TopQ'"),
        ({"n_layers": "three"}, "config.json of the transcoder: n_layers must be a whole number, got 'three'"),
        ({"topology": "ring"}, "config.json of the transcoder: topology"),
        ({"n_features": 4096}, "weights do not fit"),
    ],
)
def test_a_config_that_was_edited_is_one_message(
    make_clt: MakeCLT, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    make_clt().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        CrossLayerTranscoder.from_pretrained(tmp_path)
    del config["n_layers"], config["activation"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="missing activation, n_layers"):
        CrossLayerTranscoder.from_pretrained(tmp_path)
    path.write_text("[]")
    with pytest.raises(UserError, match="format None"):
        CrossLayerTranscoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("activation", [TopK(4), BatchTopK(3), JumpReLU(0.5), ReLU()], ids=lambda a: type(a).__name__)
def test_from_pretrained_gives_the_same_codes_to_the_last_bit(
    make_clt: MakeCLT, tmp_path: Path, activation: Activation
) -> None:
    x, _ = data()
    clt = make_clt(dtype=torch.float32, activation=activation, skip=True)
    clt(x)  # BatchTopK stores a threshold
    clt.eval().save_pretrained(tmp_path, {"note": "made"})
    again = CrossLayerTranscoder.from_pretrained(tmp_path)
    a, b = clt.encode(x), again.encode(x)
    assert torch.equal(a.dense(), b.dense())
    assert int(a.l0().sum()) > 0
    assert again.W_skip is not None
    torch.testing.assert_close(again(x).y_hat, clt(x).y_hat, rtol=1e-5, atol=1e-4)
    assert (again.x_scale == 1).all()
    assert (again.y_scale == 1).all()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["activation"]["class_path"] == type(activation).__name__
    assert config["metadata"] == {"note": "made"}
    # the folded weights alone give the reconstruction, as other tools compute it
    z = again.encode(x).dense()
    by_hand = again.b_dec[1] + z[1] @ again.W_dec[1][:, 0] + z[0] @ again.W_dec[0][:, 1] + x[1] @ again.W_skip[1].T
    torch.testing.assert_close(by_hand, again(x).y_hat[1], rtol=1e-4, atol=1e-3)


def test_damaged_files_are_named(make_clt: MakeCLT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        CrossLayerTranscoder.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        CrossLayerTranscoder.from_pretrained(tmp_path)
    make_clt().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot read the transcoder"):
        CrossLayerTranscoder.from_pretrained(tmp_path)


def test_decoder_norms_are_of_the_concatenation(make_clt: MakeCLT) -> None:
    """Mistake 8: a norm a column would make a feature that writes to many layers as cheap as one that writes to one."""
    clt = make_clt()
    norms = clt.decoder_norms()
    expected = clt.W_dec[0].flatten(1).norm(dim=1)
    torch.testing.assert_close(norms[0], expected, rtol=1e-9, atol=0)


def test_wrong_shapes_are_named(make_clt: MakeCLT) -> None:
    clt = make_clt(skip=True)
    with pytest.raises(UserError, match=r"\(3, tokens, 8\), got \(2, 5, 8\)"):
        clt(torch.randn(2, 5, 8))
    with pytest.raises(UserError, match=r"codes must be \(3, tokens, 20\)"):
        clt.decode(torch.rand(3, 5, 19))
    with pytest.raises(UserError, match="decode\\(codes, x\\)"):
        clt.decode(clt.encode(torch.randn(3, 5, 8)))
    with pytest.raises(UserError, match=r"target must lie in 0\.\.2"):
        clt.contributions(clt.encode(torch.randn(3, 5, 8)), 3)
    with pytest.raises(UserError, match="topology"):
        CrossLayerTranscoder(2, 4, 8, topology="cross")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="skip=True makes no sense"):
        CrossLayerTranscoder(2, 4, 8, topology="sae", skip=True)


def test_one_activation_object_builds_several_transcoders() -> None:
    activation = JumpReLU(0.5)
    a = CrossLayerTranscoder(2, 4, 8, activation)
    b = CrossLayerTranscoder(3, 4, 16, activation)
    assert a.activation.log_threshold.shape == (2, 8)
    assert b.activation.log_threshold.shape == (3, 16)


def test_decoder_blocks_are_contiguous(make_clt: MakeCLT) -> None:
    """The kernels read one target's block at a time; copies and loading must keep that layout."""
    clt = make_clt()
    clt.load_state_dict(clt.state_dict())
    for W in clt.W_dec:
        assert all(W[:, t].is_contiguous() for t in range(W.shape[1]))

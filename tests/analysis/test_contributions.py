"""Contribution scores: by hand, on planted decoders, in any batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clt_lightning.analysis import Contributions
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TokenLayout
from clt_lightning.transcoder import Codes, CrossLayerTranscoder, TopK

from .world import LAYERS, POSITIONS, Made, make_clt, numpy_codes, numpy_terms


def by_hand(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uncentred and centred scores from `(source, target, N, d)`."""
    uncentred, centred = np.zeros((2, LAYERS, LAYERS))
    variation = terms - terms.mean(2, keepdims=True)
    for j in range(LAYERS):
        y = terms[:, j].sum(0)
        ok = (y**2).sum(1) > 0
        for i in range(LAYERS):
            c = terms[i, j]
            uncentred[i, j] = ((c * y).sum(1)[ok] / (y**2).sum(1)[ok]).mean()
            variance = (variation[:, j].sum(0) ** 2).sum()
            centred[i, j] = (variation[i, j] * variation[:, j].sum(0)).sum() / variance if variance else np.nan
    return uncentred, centred


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
@pytest.mark.parametrize("batch", [4, 17])
def test_equals_numpy(clip: FrozenCLIP, topology: str, batch: int) -> None:
    clt, data = make_clt(topology), Made(n=17)
    images, labels, _ = data.everything()
    acts = clip.capture(images)
    metric = Contributions(clt, n_classes=6)
    for start in range(0, 17, batch):
        part = clip.capture(images[start : start + batch])
        metric.update(clt.encode(part.x), TokenLayout.plain(POSITIONS), torch.from_numpy(labels[start : start + batch]))
    found = metric.scores()
    terms = numpy_terms(clt, numpy_codes(clt, acts.x.double().numpy())).reshape(LAYERS, LAYERS, 17, POSITIONS, -1)
    for name, cut in (("cls", slice(0, 1)), ("patch", slice(1, None)), ("all", slice(None))):
        chosen = terms[:, :, :, cut]
        uncentred, centred = by_hand(chosen.reshape(LAYERS, LAYERS, -1, chosen.shape[-1]))
        assert np.allclose(found[name].uncentred.numpy(), uncentred, atol=1e-6)
        assert np.allclose(found[name].centred.numpy(), centred, atol=1e-5)
        assert np.allclose(found[name].uncentred.sum(0).numpy(), 1)
        assert np.allclose(found[name].centred.sum(0).numpy(), 1)
        assert np.allclose(found[name].means.numpy(), chosen.mean((2, 3)), atol=1e-6)
        assert found[name].tokens == chosen.shape[2] * chosen.shape[3]
        by_class = found[name].by_class
        assert by_class is not None
        rows = []
        for c in range(5):
            own = chosen[:, :, labels == c]
            assert np.allclose(
                by_class[c].numpy(), by_hand(own.reshape(LAYERS, LAYERS, -1, own.shape[-1]))[0], atol=1e-6
            )
            rows.append(by_class[c].numpy())
        assert by_class[5].isnan().all()
        std = found[name].std_over_classes()
        assert std is not None
        assert np.allclose(std.numpy(), np.std(rows, 0))
    if topology == "per_layer":
        assert np.allclose(found["all"].uncentred.numpy(), np.eye(LAYERS))


def planted() -> tuple[CrossLayerTranscoder, Codes]:
    """Source 0 writes a constant 3 u into layer 1, source 1 writes z v with z = -1 or 1, v orthogonal to u."""
    clt = CrossLayerTranscoder(2, 4, 1, TopK(1))
    with torch.no_grad():
        clt.W_dec[0][0, 0] = torch.tensor([1.0, 0, 0, 0])
        clt.W_dec[0][0, 1] = torch.tensor([3.0, 0, 0, 0])
        clt.W_dec[1][0, 0] = torch.tensor([0, 1.0, 0, 0])
    signs = torch.tensor([1.0, -1.0] * 10)
    return clt, Codes.from_dense(torch.stack([torch.ones(20), signs])[:, :, None])


def test_a_constant_direction_counts_in_one_score_only() -> None:
    clt, codes = planted()
    metric = Contributions(clt)
    metric.update(codes, TokenLayout.plain(2))
    found = metric.scores()["all"]
    # |3 u|^2 = 9 of 10, |v|^2 = 1 of 10; of the variance v makes everything
    assert torch.allclose(found.uncentred[:, 1], torch.tensor([0.9, 0.1], dtype=torch.float64))
    assert torch.allclose(found.centred[:, 1], torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert found.by_class is None
    assert found.std_over_classes() is None


def test_scores_are_signed_and_tokens_without_codes_do_not_count() -> None:
    clt, codes = planted()
    with torch.no_grad():
        clt.W_dec[1][0, 0] = torch.tensor([-1.0, 0, 0, 0])  # works against source 0
    dense = codes.dense().abs()
    dense[:, 10:] = 0
    metric = Contributions(clt)
    metric.update(Codes.from_dense(dense), TokenLayout.plain(2))
    found = metric.scores()["all"]
    assert torch.allclose(found.uncentred[:, 1], torch.tensor([1.5, -0.5], dtype=torch.float64))


def test_a_large_mean_costs_no_digits() -> None:
    clt, codes = planted()
    with torch.no_grad():
        clt.W_dec[0][0, 1] = torch.tensor([1e4, 0, 0, 0])
    metric = Contributions(clt)
    metric.update(codes, TokenLayout.plain(2))
    assert torch.allclose(
        metric.scores()["all"].centred[:, 1], torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-6
    )


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
def test_skip_and_bias_are_rows_of_the_whole_scores(clip: FrozenCLIP, topology: str) -> None:
    clt = make_clt(topology, skip=True)
    images = Made(n=9).everything()[0]
    metric = Contributions(clt)
    for part in images.split(4):
        acts = clip.capture(part)
        metric.update(clt.encode(acts.x), TokenLayout.plain(POSITIONS), x=acts.x)
    found = metric.scores()
    acts = clip.capture(images)
    out = clt(acts.x)
    features = numpy_terms(clt, numpy_codes(clt, acts.x.double().numpy()))
    y_hat = out.y_hat.detach().double().numpy().reshape(LAYERS, 9, POSITIONS, -1)
    terms = np.zeros((LAYERS + 2, *y_hat.shape))
    terms[:-2] = features.reshape(LAYERS, *y_hat.shape)
    terms[-1] = (clt.b_dec * clt.y_scale[:, None]).detach().double().numpy()[:, None, None]
    terms[-2] = y_hat - terms.sum(0)  # what is left is the linear path
    for name, cut in (("cls", slice(0, 1)), ("patch", slice(1, None)), ("all", slice(None))):
        part, y = (a[..., cut, :].reshape(*a.shape[:-3], -1, a.shape[-1]) for a in (terms, y_hat))
        uncentred = ((part * y).sum(-1) / (y**2).sum(-1)).mean(-1)
        moved, whole = part - part.mean(2, keepdims=True), y - y.mean(1, keepdims=True)
        centred = (moved * whole).sum((2, 3)) / (whole**2).sum((1, 2))
        np.testing.assert_allclose(found[name].whole_uncentred.numpy(), uncentred, atol=1e-4)
        np.testing.assert_allclose(found[name].whole_centred.numpy(), centred, atol=1e-4)
        np.testing.assert_allclose(found[name].whole_uncentred.sum(0).numpy(), 1, atol=1e-9)
        np.testing.assert_allclose(found[name].features_share.numpy(), 1 - centred[-2], atol=1e-4)
        np.testing.assert_allclose(found[name].rest_means[0].numpy(), terms[-2][:, :, cut].mean((1, 2)), atol=1e-4)
    assert float(abs(found["all"].whole_centred[-2]).max()) > 0.05


def test_without_a_skip_the_features_carry_everything() -> None:
    clt, codes = planted()
    metric = Contributions(clt)
    metric.update(codes, TokenLayout.plain(2))
    found = metric.scores()["all"]
    assert torch.allclose(found.features_share[1:], torch.ones(1, dtype=torch.float64))
    assert not bool(found.whole_centred[-2:, 1].any())


def test_a_skip_needs_its_input() -> None:
    clt = CrossLayerTranscoder(2, 4, 3, TopK(1), skip=True)
    with pytest.raises(UserError, match="MLP inputs x"):
        Contributions(clt).update(clt.encode(torch.randn(2, 4, 4)), TokenLayout.plain(2))


@pytest.mark.parametrize("skip", [False, True])
def test_the_whole_of_each_class_has_skip_and_bias(clip: FrozenCLIP, skip: bool) -> None:
    clt, data = make_clt(skip=skip), Made(n=17)
    images, labels, _ = data.everything()
    acts = clip.capture(images)
    metric = Contributions(clt, n_classes=6)
    for start in range(0, 17, 5):
        part = clip.capture(images[start : start + 5])
        metric.update(clt.encode(part.x), part.layout, torch.from_numpy(labels[start : start + 5]), part.x)
    found = metric.scores()["patch"]
    terms = numpy_terms(clt, numpy_codes(clt, acts.x.double().numpy()))
    whole = np.zeros((LAYERS + 2, *terms.shape[1:]))
    whole[:LAYERS] = terms
    for j in range(LAYERS):
        whole[LAYERS, j] = clt.skip_term(acts.x[j], j).detach().double().numpy()
        whole[LAYERS + 1, j] = clt.bias(j).detach().double().numpy()
    assert found.whole_by_class is not None
    std, rows = found.whole_std_over_classes(), []
    for c in range(5):
        own = whole.reshape(LAYERS + 2, LAYERS, 17, POSITIONS, -1)[:, :, labels == c, 1:]
        y = own.sum(0)
        wanted = ((own * y).sum(-1) / (y**2).sum(-1)).mean((2, 3))
        assert np.allclose(found.whole_by_class[c].numpy(), wanted, atol=1e-5)
        assert np.allclose(wanted.sum(0), 1)
        assert wanted[LAYERS].any() == skip
        rows.append(found.whole_by_class[c].numpy())
    assert found.whole_by_class[5].isnan().all()
    assert std is not None
    assert np.allclose(std.numpy(), np.std(rows, 0))

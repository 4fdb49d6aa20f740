"""Matching: planted permutations, twins and strangers are found as what they are."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clt_lightning.analysis import feature_rows, one_to_one
from clt_lightning.analysis.feature_rows import KINDS
from clt_lightning.analysis.matching import STATES, match_features
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import Sites
from clt_lightning.transcoder import AbsTopK, CrossLayerTranscoder, TopK

LAYERS, WIDTH, FEATURES = 3, 48, 60


def made(
    seed: int = 0, features: int = FEATURES, topology: str = "cross_layer", activation: object = None
) -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(LAYERS, WIDTH, features, activation or TopK(4), topology, seed=seed)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for W in clt.W_dec:
            W.normal_(0, 0.1, generator=generator)
    return clt


def made_at(sites: Sites, topology: Any = "cross_layer") -> CrossLayerTranscoder:
    return CrossLayerTranscoder(LAYERS, WIDTH, FEATURES, TopK(4), topology, sites=sites)


def copied(
    clt: CrossLayerTranscoder, rows: torch.Tensor, noise: float = 0.0, sign: float = 1.0
) -> CrossLayerTranscoder:
    """Features `rows` of another one, with noise relative to each row's length."""
    out = made(9, len(rows), clt.topology, clt.activation)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in range(LAYERS):
            for mine, theirs in ((out.W_enc[layer], clt.W_enc[layer]), (out.W_dec[layer], clt.W_dec[layer])):
                part = theirs[rows] * sign
                extra = torch.randn(part.shape, generator=generator)
                size = part.flatten(1).norm(dim=1) / extra.flatten(1).norm(dim=1)
                mine.copy_(part + noise * extra * size.view(-1, *[1] * (part.dim() - 1)))
    return out


def test_a_permutation_is_found() -> None:
    clt, order = made(), torch.randperm(FEATURES, generator=torch.Generator().manual_seed(1))
    for layer in match_features(clt, copied(clt, order)):
        assert layer.a.count("kept") == layer.b.count("kept") == FEATURES
        np.testing.assert_array_equal(layer.b.partner, order.numpy())
        np.testing.assert_array_equal(order.numpy()[layer.a.partner], np.arange(FEATURES))
        for kind in KINDS:
            assert layer.mmcs[kind] == pytest.approx(1, abs=1e-5)
            assert layer.mcc[kind] == pytest.approx(1, abs=1e-5)
        assert layer.null["limit"] < 0.7
        assert layer.null["untrained"]["both"] < layer.null["mixed"]["both"] + 0.05


def test_cosines_are_those_of_the_whole_rows() -> None:
    a, b = made(), copied(made(), torch.arange(FEATURES), noise=0.4)
    for number, layer in enumerate(match_features(a, b)):
        for f in (0, 17, 59):
            g = int(layer.a.partner[f])
            writes = F.cosine_similarity(a.W_dec[number][f].flatten(), b.W_dec[number][g].flatten(), dim=0)
            reads = F.cosine_similarity(a.W_enc[number][f], b.W_enc[number][g], dim=0)
            assert layer.a.decoder[f] == pytest.approx(writes.item(), abs=1e-5)
            assert layer.a.encoder[f] == pytest.approx(reads.item(), abs=1e-5)


def test_a_pair_must_agree_in_both() -> None:
    a, b = made(), copied(made(), torch.arange(FEATURES))
    with torch.no_grad():
        b.W_enc[1][:10] = made(3).W_enc[1][:10]
    found = match_features(a, b)[1]
    assert (found.a.state[:10] == STATES.index("new")).all()
    assert (found.a.state[10:] == STATES.index("kept")).all()
    assert found.mmcs["decoder"] == pytest.approx(1, abs=1e-5)
    assert found.mmcs["both"] < 0.95


def test_twins_and_strangers() -> None:
    a = made()
    rows = torch.cat([torch.arange(FEATURES), torch.tensor([7, 7])])
    b = copied(a, rows, noise=0.05)
    with torch.no_grad():  # two further ones near to feature 7, and one like none
        near = copied(a, rows, noise=0.9)
        stranger = made(4)
        for layer in range(LAYERS):
            for mine, theirs, other in (
                (b.W_enc[layer], near.W_enc[layer], stranger.W_enc[layer]),
                (b.W_dec[layer], near.W_dec[layer], stranger.W_dec[layer]),
            ):
                mine[60:], mine[3] = theirs[60:], other[3]
    for found in match_features(a, b):
        assert found.b.state[60] == found.b.state[61] == STATES.index("split")
        assert found.b.partner[60] == found.b.partner[61] == 7
        assert found.b.state[3] == STATES.index("new")
        assert found.a.state[3] == STATES.index("new")
        assert found.a.state[7] == STATES.index("kept")
        assert found.b.count("kept") == FEATURES - 1


def test_dead_features_take_no_part() -> None:
    a = made()
    alive = np.ones((LAYERS, FEATURES), bool)
    alive[:, :5] = False
    found = match_features(a, copied(a, torch.arange(FEATURES)), alive, None)
    for layer in found:
        assert layer.a.count("dead") == 5
        assert (layer.a.partner[:5] == -1).all()
        assert (layer.b.state[:5] == STATES.index("new")).all()
        assert layer.b.count("kept") == FEATURES - 5
    nobody = match_features(a, a, np.zeros_like(alive), alive)
    assert nobody[0].a.count("dead") == FEATURES
    assert nobody[0].b.count("new") == FEATURES - 5


def test_strangers_have_nothing_in_common() -> None:
    for layer in match_features(made(0), made(1)):
        assert layer.a.count("kept") == 0
        assert layer.mmcs["both"] == pytest.approx(layer.null["untrained"]["both"], abs=0.05)


def test_the_one_to_one_matching_is_the_best() -> None:
    a, b = made(2, 6), made(3, 6)
    cosines = F.normalize(a.W_dec[2].flatten(1), dim=1) @ F.normalize(b.W_dec[2].flatten(1), dim=1).T
    best = max(sum(cosines[i, j].item() for i, j in enumerate(p)) for p in itertools.permutations(range(6))) / 6
    free, greedy = cosines.detach().clone(), 0.0
    for _ in range(6):
        i, j = divmod(int(free.argmax()), 6)
        greedy += float(free[i, j]) / 6
        free[i], free[:, j] = -2, -2
    found, largest_first = (match_features(a, b, assignment=how)[2] for how in ("hungarian", "greedy"))
    assert found.mcc["decoder"] == pytest.approx(best, abs=1e-6)
    assert largest_first.mcc["decoder"] == pytest.approx(greedy, abs=1e-6)
    assert best / 2 <= greedy < best
    assert (found.assignment, largest_first.assignment) == ("hungarian", "greedy")


def test_large_sets_are_matched_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = made(), made(1)
    assert match_features(a, b)[0].assignment == "hungarian"
    monkeypatch.setattr(one_to_one, "LARGEST", FEATURES * FEATURES - 1)
    assert match_features(a, b)[0].assignment == "greedy"
    with pytest.raises(UserError, match="auto, hungarian, greedy, got 'best'"):
        match_features(a, b, assignment="best")  # type: ignore[arg-type]


@pytest.mark.parametrize(("assignment", "exact"), [("hungarian", 1e-6), ("greedy", 0.01)])
def test_either_order_gives_the_same(assignment: Any, exact: float) -> None:
    """Largest first looks at a few candidates of each row at a time: not quite symmetric."""
    a, b = made(0, 50), copied(made(0), torch.arange(FEATURES), noise=1.0)
    for one, other in zip(match_features(a, b, assignment=assignment), match_features(b, a, assignment=assignment)):
        assert one.mcc == pytest.approx(other.mcc, abs=exact)
        assert one.mmcs == pytest.approx(other.mmcs_b, abs=1e-6)
        assert one.mmcs_b == pytest.approx(other.mmcs, abs=1e-6)
        np.testing.assert_array_equal(one.a.state, other.b.state)


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = made(), copied(made(), torch.arange(FEATURES), noise=1.0)
    whole = match_features(a, b)
    monkeypatch.setattr(feature_rows, "_BLOCK", 7 * FEATURES)
    monkeypatch.setattr(one_to_one, "_CANDIDATES", 2)
    for one, other in zip(whole, match_features(a, b)):
        for name in ("state", "partner"):
            np.testing.assert_array_equal(getattr(one.a, name), getattr(other.a, name))
            np.testing.assert_array_equal(getattr(one.b, name), getattr(other.b, name))
        assert one.mmcs == pytest.approx(other.mmcs)
        assert one.null["mixed"] == pytest.approx(other.null["mixed"])


def test_features_with_two_signs() -> None:
    a = made(activation=AbsTopK(4))
    turned = copied(a, torch.arange(FEATURES), sign=-1.0)
    assert match_features(a, turned)[0].a.count("kept") == FEATURES
    # where codes are never negative, what points the other way is another feature
    assert match_features(made(), copied(made(), torch.arange(FEATURES), sign=-1.0))[0].a.count("kept") == 0


def test_another_topology_is_compared_where_both_write() -> None:
    a, b = made(), made(topology="per_layer")
    with torch.no_grad():
        for layer in range(LAYERS):
            b.W_enc[layer].copy_(a.W_enc[layer])
            b.W_dec[layer][:, 0] = a.W_dec[layer][:, 0]
    assert all(layer.a.count("kept") == FEATURES for layer in match_features(a, b))


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="3 layers of width 48, the other for 3 of width 32"):
        match_features(made(), CrossLayerTranscoder(LAYERS, 32, 8, TopK(2)))
    with pytest.raises(UserError, match="cross_layer and sae"):
        match_features(made(), made(topology="sae"))
    with pytest.raises(UserError, match=r"blocks \[0, 1, 4\], the other for all blocks"):
        match_features(made_at(Sites(layers=[0, 1, 4])), made_at(Sites(layers=[0, 1, 2])))
    with pytest.raises(UserError, match="reads resid_post and rebuilds resid_post, the other mlp_out and mlp_out"):
        match_features(made_at(Sites("resid_post"), "sae"), made(topology="sae"))
    assert match_features(made_at(Sites(layers=[0, 1, 2])), made())
    with pytest.raises(UserError, match=r"must be \(3, 60\), layers x features, got \(3, 61\)"):
        match_features(made(), made(), np.ones((LAYERS, FEATURES + 1), bool))
    with pytest.raises(UserError, match="near <= kept"):
        match_features(made(), made(), kept=0.3)

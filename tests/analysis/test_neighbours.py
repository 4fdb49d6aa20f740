"""Neighbours of features: planted decoders and encoders, counted co-firing, virtual weights against real movements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clt_lightning.analysis.neighbours import Neighbours, find_neighbours, read_directions
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import FEATURES, LAYERS, WIDTH, make_clt


def everything() -> np.ndarray:
    return np.ones((LAYERS, FEATURES), bool)


def find(clip: FrozenCLIP, clt: CrossLayerTranscoder, alive: np.ndarray | None = None) -> Neighbours:
    return find_neighbours(clip, clt, everything() if alive is None else alive)


def test_alike_decoders_and_encoders(clip: FrozenCLIP) -> None:
    clt = make_clt()
    with torch.no_grad():
        clt.W_dec[0][5] = 2 * clt.W_dec[0][9]
        clt.W_dec[0][6, 0] = clt.W_dec[0][9, 0]  # alike in one target only
        clt.W_enc[1][3] = -clt.W_enc[1][4]
        clt.W_enc[1][7] = 0.5 * clt.W_enc[1][4]
    found = find(clip, clt)
    assert found["decoder_feature"][0, 5, 0] == 9
    assert found["decoder_score"][0, 5, 0] == pytest.approx(1, abs=1e-5)
    assert found["decoder_score"][0, 6, 0] < 0.95
    assert found["encoder_feature"][1, 4, 0] == 7
    assert 3 not in found["encoder_feature"][1, 4]
    # the whole table by hand, in the backbone's units
    rows = (clt.W_dec[1] * clt.y_scale[1:][None, :, None]).flatten(1).detach().double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    cosines = rows @ rows.T
    cosines.fill_diagonal_(-2)
    np.testing.assert_allclose(found["decoder_score"][1], cosines.topk(10, 1).values.numpy(), atol=1e-5)


def test_features_that_never_fired_are_nobodys_neighbours(clip: FrozenCLIP) -> None:
    alive = everything()
    alive[:, 30:] = False
    alive[0, 3:] = False
    found = find(clip, make_clt(), alive)
    for kind in ("decoder", "encoder"):
        assert (found[f"{kind}_feature"][1, :30] < 30).all()
        assert (found[f"{kind}_feature"][:, 30:] == -1).all()
        assert (found[f"{kind}_feature"][0, 0, :2] >= 0).all()  # two others fire in layer 0
        assert (found[f"{kind}_feature"][0, 0, 2:] == -1).all()
    assert (found["reader_feature"][:, 30:] == -1).all()
    assert found["reader_feature"].max() < 30
    assert set(found["writer_feature"][1, 0]) == {0, 1, 2, -1}


def test_readers_and_writers_are_what_moves_a_pre_activation(clip: FrozenCLIP) -> None:
    clt = make_clt()
    found = find(clip, clt)
    source, target, f, g = 0, 2, 11, 4
    # by hand: the stream moves by what f writes into layers 0 and 1; ln_2 without its scale; the encoder of layer 2
    moved = sum(clt.W_dec[source][f, t] * clt.y_scale[source + t] for t in range(2)).double()
    block = clip.blocks[target]
    read = (clt.W_enc[target][g] * clt.x_scale[target]).double() * block.ln_2.weight.double()  # type: ignore[union-attr]
    expected = float((moved - moved.mean()) @ read)
    weights = torch.stack([moved]) @ read_directions(clip, clt, target).double().T
    assert float(weights[0, g]) == pytest.approx(expected, rel=1e-4)
    table = {
        (int(j), int(h)): float(w)
        for j, h, w in zip(found["reader_layer"][0, f], found["reader_feature"][0, f], found["reader_score"][0, f])
    }
    assert len(table) == 10
    for (j, h), weight in table.items():
        if j == target:
            assert weight == pytest.approx(float(weights[0, h]), rel=1e-3)
    # none is missed: the weakest of the ten is at least as large as all others of that layer
    others = [abs(float(w)) for h, w in enumerate(weights[0]) if (target, h) not in table]
    assert max(others) <= min(abs(w) for w in table.values()) + 1e-5
    # the two tables tell of the same weights
    for rank in range(10):
        i, h = int(found["writer_layer"][2, g, rank]), int(found["writer_feature"][2, g, rank])
        if i == 0:
            back = sum(clt.W_dec[0][h, t] * clt.y_scale[t] for t in range(2))
            again = float(back @ read_directions(clip, clt, 2)[g])
            assert found["writer_score"][2, g, rank] == pytest.approx(again, rel=1e-3)
    assert (found["writer_feature"][0] == -1).all()
    assert (found["reader_feature"][LAYERS - 1] == -1).all()


def test_per_layer_features_write_into_one_layer_only(clip: FrozenCLIP) -> None:
    clt = make_clt("per_layer")
    found = find(clip, clt)
    rank = int(np.flatnonzero(found["reader_layer"][0, 7] == 2)[0])
    g = int(found["reader_feature"][0, 7, rank])
    expected = float(clt.W_dec[0][7, 0] * clt.y_scale[0] @ read_directions(clip, clt, 2)[g])
    assert found["reader_score"][0, 7, rank] == pytest.approx(expected, rel=1e-3)
    assert "reader_score" not in find(clip, make_clt("sae")).arrays


def test_co_firing_is_pointwise_mutual_information() -> None:
    rng = np.random.default_rng(0)
    n, features = 400, 12
    active = rng.random((n, features)) < 0.3
    active[:, 1] = active[:, 0] & (rng.random(n) < 0.9)  # 1 almost only with 0
    active[:, 2] = False
    active[:4, 2] = True
    active[:4, 3] = True  # together on four images: too few to count
    indices = np.zeros((1, n, features), np.int32)
    values = np.zeros((1, n, features), np.float32)
    for row in range(n):
        on = np.flatnonzero(active[row])
        indices[0, row, : len(on)], values[0, row, : len(on)] = on, 1.0
    retrieval = Retrieval([str(i) for i in range(n)], np.full(n, -1), features, indices, values)
    clt = CrossLayerTranscoder(1, WIDTH, features, topology="sae")
    found = find_neighbours(None, clt, np.ones((1, features), bool), retrieval, n=3)  # type: ignore[arg-type]
    assert found["together_feature"][0, 1, 0] == 0
    p = active.mean(0)
    expected = np.log((active[:, 0] & active[:, 1]).mean() / (p[0] * p[1]))
    assert found["together_score"][0, 1, 0] == pytest.approx(expected, rel=1e-4)
    assert (found["together_feature"][0, 2] == -1).all()
    scores = found["together_score"][0]
    assert (np.diff(scores[:2], axis=1) <= 1e-6).all()


def test_saved_and_read(clip: FrozenCLIP, tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = find(clip, make_clt())
    assert Neighbours.load(tmp_path) is None
    found.save(tmp_path)
    again = Neighbours.load(tmp_path)
    assert again is not None
    for name, values in found.arrays.items():
        np.testing.assert_array_equal(again[name], values)

"""The planted world keeps its word: what it says of its features is what its tensors are made of."""

from __future__ import annotations

import pytest
import torch

import clt_lightning as cl
from clt_lightning.core.errors import UserError
from clt_lightning.data import Planted


@pytest.mark.parametrize(("layers", "d", "features"), [(1, 3, 2), (3, 5, 7), (4, 24, 32)])
def test_tensors_are_made_of_the_features(layers: int, d: int, features: int) -> None:
    world = Planted(layers, d, features, rate=0.3, carry=0.5, seed=4)
    batch = world.sample(11, seed=2)
    assert batch.codes.shape == (layers, 11, features)
    for j in range(layers):
        x, y = torch.zeros(11, d), torch.zeros(11, d)
        for i in range(j + 1):
            for f in range(features):
                x += 0.5 ** (j - i) * batch.codes[i, :, f, None] * world.W_enc[i, f]
                y += batch.codes[i, :, f, None] * world.W_dec[i][f, j - i]
        torch.testing.assert_close(batch.x[j], x)
        torch.testing.assert_close(batch.y[j], y)


def test_the_true_transcoder_rebuilds_what_is_written() -> None:
    """In the transcoder's own layout: W_dec[i] is (F, L - i, d)."""
    world = Planted(3, 8, 5, rate=0.4)
    clt = cl.CrossLayerTranscoder(n_layers=3, d_model=8, n_features=5, activation=cl.TopK(5), skip=False)
    with torch.no_grad():
        for own, true in zip(clt.W_dec, world.W_dec):
            own.copy_(true)
    batch = world.sample(20)
    torch.testing.assert_close(clt.decode(batch.codes, batch.x), batch.y)


def test_supports_and_anchors_are_as_many_as_asked() -> None:
    world = Planted(5, 4, 400, support=0.45, anchors=0.25, seed=1)
    for i, there in enumerate(world.support):
        assert there.shape == (400, 5 - i)
        assert bool(there.any(1).all())
        assert torch.equal(there, world.W_dec[i].norm(dim=-1) > 0)
        assert torch.equal(world.anchors[i], there.sum(1) == 1)
        assert world.anchors[i].sum() >= 100
    plain = Planted(5, 4, 4000, support=0.45).support[0]
    assert abs(plain.float().mean().item() - 0.45) < 0.025  # rows without any get one
    assert bool(Planted(5, 4, 30, anchors=1.0).anchors.all())
    assert bool(torch.cat([s.flatten() for s in Planted(5, 4, 30, support=1.0).support]).all())
    torch.testing.assert_close(world.W_enc.norm(dim=-1), torch.ones(5, 400))


def test_features_are_on_at_their_rates() -> None:
    world = Planted(2, 4, 50, rate=(0.01, 0.5), seed=7)
    assert world.rates.min() >= 0.01
    assert world.rates.max() <= 0.5
    assert world.rates.min() < 0.03
    codes = world.sample(20_000).codes
    on = codes[codes > 0]
    assert on.min() >= 0.5
    assert on.max() <= 1.5
    torch.testing.assert_close((codes > 0).float().mean(1), world.rates, atol=0.02, rtol=0)
    shifted = world.sample(2000, rates=world.rates.flip(1)).codes
    torch.testing.assert_close((shifted > 0).float().mean(1), world.rates.flip(1), atol=0.06, rtol=0)


def test_everything_is_a_function_of_the_seeds() -> None:
    a, b, other = Planted(seed=3, noise=0.1), Planted(seed=3, noise=0.1), Planted(seed=4)
    assert torch.equal(a.sample(5, seed=1).y, b.sample(5, seed=1).y)
    assert not torch.equal(a.sample(5, seed=1).codes, a.sample(5, seed=2).codes)
    assert not torch.equal(a.W_enc, other.W_enc)
    whole, rest = list(a.batches(6, 5, seed=9)), list(b.batches(6, 5, seed=9, start=3))
    assert [batch.x.sum() for batch in whole[3:]] == [batch.x.sum() for batch in rest]
    assert len({batch.x.sum().item() for batch in whole}) == 5


def test_noise_has_its_size() -> None:
    quiet, loud = Planted(seed=2), Planted(seed=2, noise=0.25)
    a, b = quiet.sample(4000), loud.sample(4000)
    assert torch.equal(a.codes, b.codes)
    for name in ("x", "y"):
        assert (getattr(b, name) - getattr(a, name)).std().item() == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"n_layers": 0}, {"rate": 0.0}, {"rate": (0.5, 0.1)}, {"rate": 1.5}, {"support": 1.2}, {"anchors": -0.1}),
        *({"carry": 2.0}, {"amplitude": (0.0, 1.0)}, {"noise": -1.0}),
    ],
)
def test_what_is_no_world_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"Planted: {next(iter(wrong))} must be"):
        Planted(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"rates must be \(4, 32\)"):
        Planted().sample(3, rates=torch.zeros(4, 3))

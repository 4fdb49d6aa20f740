"""The encoder's ceiling and the anchors, where the answer is known."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.analysis.anchors import anchor_agreement
from clt_lightning.analysis.ceiling import encoder_ceiling
from clt_lightning.analysis.matching import match_features
from clt_lightning.core.errors import UserError
from clt_lightning.data import Planted
from clt_lightning.transcoder import AbsTopK, CrossLayerTranscoder, ReLU, TopK
from clt_lightning.transcoder.support import depth_support


def planted(seed: int = 0, anchors: float = 0.3) -> tuple[CrossLayerTranscoder, Planted]:
    """A transcoder with a world's own decoders, and encoders that are too eager."""
    world = Planted(3, 16, 12, seed=seed, anchors=anchors)
    clt = CrossLayerTranscoder(3, 16, 12, TopK(2), seed=0)
    with torch.no_grad():
        for W, true in zip(clt.W_dec, world.W_dec):
            W.copy_(true)
        for W, read in zip(clt.W_enc, world.W_enc):
            W.copy_(read)
    return clt.eval(), world


def test_the_search_finds_the_true_codes_that_the_encoder_misses() -> None:
    clt, world = planted()
    batch = world.sample(40, seed=1)
    found = encoder_ceiling(clt, batch.x, batch.y)
    one = (batch.codes > 0).sum((0, 2)) == 1  # there the first choice is the true one, and nothing is left
    assert one.any()
    torch.testing.assert_close(found.codes[:, one], batch.codes[:, one], atol=1e-4, rtol=1e-4)
    assert found.searched < 0.05 * found.encoder
    assert found.searched <= found.refitted <= found.encoder
    assert 0 < found.agreement <= 1


def test_what_it_is_not_for_is_refused() -> None:
    signed = CrossLayerTranscoder(3, 16, 12, AbsTopK(2), seed=0)
    x = torch.zeros(3, 4, 16)
    with pytest.raises(UserError, match="codes of 0 or more"):
        encoder_ceiling(signed, x, x)
    with pytest.raises(UserError, match="same layers and tokens"):
        encoder_ceiling(CrossLayerTranscoder(3, 16, 12, ReLU(), seed=0), x, x[:, :2])


def test_agreement_of_anchors_is_told_apart_from_the_others() -> None:
    clt, _ = planted()
    other, _ = planted()
    support = depth_support(clt)
    there = support.anchors()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, W in enumerate(other.W_enc):
            others = ~there[layer]
            W[others] = torch.randn(int(others.sum()), 16, generator=generator)
    found = anchor_agreement(support, match_features(clt, other))
    assert found.share == pytest.approx(float(there[:2].float().mean()))
    assert found.anchors == pytest.approx(1.0, abs=1e-5)
    assert found.others < 0.8
    assert 0 < found.low < found.anchors - found.others < found.high
    with pytest.raises(UserError, match="layers"):
        anchor_agreement(support, match_features(clt, other)[:2])

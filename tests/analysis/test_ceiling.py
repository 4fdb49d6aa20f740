"""The encoder's ceiling, where the answer is known."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.analysis import ceiling
from clt_lightning.analysis.ceiling import ceiling_bytes, encoder_ceiling
from clt_lightning.core.errors import UserError
from clt_lightning.data import Planted
from clt_lightning.transcoder import AbsTopK, CrossLayerTranscoder, ReLU, TopK


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


def test_memory_is_said_before_and_too_little_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clt, world = planted()
    batch = world.sample(3, seed=1)
    needed = ceiling_bytes(clt, 3)
    assert needed == 36 * 48 * 4 + 3 * 36 * 3 * 8
    encoder_ceiling(clt, batch.x, batch.y, progress=True)
    assert "the codes take 0.00 GB of main memory" in "".join(capsys.readouterr())
    monkeypatch.setattr(ceiling, "available", lambda: needed - 1)
    with pytest.raises(UserError, match=r"for 3 x 12 features and 3 tokens.*take fewer tokens$"):
        encoder_ceiling(clt, batch.x, batch.y)
    monkeypatch.setattr(ceiling, "available", lambda: 100)
    with pytest.raises(UserError, match="the decoders alone are too large"):
        encoder_ceiling(clt, batch.x, batch.y)

"""The sparse and the dense path train the demo alike."""

from __future__ import annotations

import numpy as np
import torch

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.data.worlds.renders import render
from clt_lightning.training.losses import reconstruction_loss
from clt_lightning.training.optim import AdamW
from clt_lightning.transcoder import CrossLayerTranscoder, StatisticsAccumulator, TopK
from clt_lightning.transcoder.encoders import Backend

STEPS, IMAGES, TOKENS = 200, 24, 128
BACKENDS: tuple[Backend, ...] = ("sparse", "dense")


def losses(backend: Backend, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    clt = CrossLayerTranscoder(x.shape[0], x.shape[2], 256, TopK(8), skip=True, backend=backend, seed=0)
    statistics = StatisticsAccumulator(x.shape[0], x.shape[2])
    statistics.update(x, y)
    clt.normalize(statistics.result())
    optimizer = AdamW(clt.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        chosen = torch.randperm(x.shape[1], generator=generator)[:TOKENS]
        loss = reconstruction_loss(y[:, chosen], clt(x[:, chosen]).y_hat, clt.y_var, None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_the_same_losses_over_200_steps() -> None:
    clip = FrozenCLIP(pretrained="demo", precision="fp32")
    acts = clip.capture(torch.stack([clip.preprocess(render(5, index).image) for index in range(IMAGES)]))
    sparse, dense = (np.array(losses(backend, acts.x, acts.y)) for backend in BACKENDS)
    assert sparse[-20:].mean() < 0.6 * sparse[:20].mean(), "it learns"
    np.testing.assert_allclose(sparse, dense, rtol=1e-4)

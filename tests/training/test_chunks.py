"""A step in chunks of tokens has the gradients of the whole batch."""

from __future__ import annotations

import pytest
import torch

import clt_lightning as cl
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.training.losses import L1Config
from clt_lightning.training.module import CLTModule, StepPart
from clt_lightning.training.settings import LossConfig, TokensConfig, TranscoderConfig
from clt_lightning.transcoder import AuxiliaryRequest
from clt_lightning.transcoder.chunked import add_up
from tests.gradients import gradient


@pytest.mark.parametrize("chunk", [1, 7, 10, 24])
@pytest.mark.parametrize("activation", [cl.TopK(4), cl.JumpReLU(0.3, 0.4)], ids=lambda a: type(a).__name__)
def test_same_gradients(chunk: int, activation: cl.Activation) -> None:
    module = CLTModule(
        FrozenCLIP(pretrained="demo"),
        TranscoderConfig(n_features=32, activation=activation),
        LossConfig(l1=L1Config(0.1)),
        tokens=TokensConfig(max_tokens_per_chunk=chunk),
    ).double()
    clt = module.transcoder
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for W in clt.W_dec:
            W.normal_(generator=generator)
    x = torch.randn(clt.n_layers, 24, clt.d_model, generator=generator, dtype=torch.float64)
    y = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    dead = torch.zeros(clt.n_layers, 32, dtype=torch.bool)
    dead[:, :5] = True
    request = AuxiliaryRequest(dead, 3, torch.tensor([1, 2, 9, 23]))
    found = []
    for size in (24, chunk):
        done: list[StepPart] = []
        losses = module._chunk_losses(x, y, request, size, done)
        loss = next(losses) if size == 24 else add_up(losses, list(clt.parameters()))
        clt.zero_grad()
        (2 * loss).backward()  # a factor, as accumulation over batches has
        parts = {name: sum(p.parts[name] for p in done if name in p.parts) for name in ("reconstruction", "l1", "auxk")}
        found.append([loss.detach(), *parts.values(), *(gradient(p).clone() for p in clt.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

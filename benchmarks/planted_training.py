"""A small training on planted tensors, with or without a prior."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from clt_lightning.training.losses import LossConfig, loss_parts
from clt_lightning.training.optim import AdamW
from clt_lightning.training.priors import Prior
from clt_lightning.transcoder import CrossLayerTranscoder, StatisticsAccumulator


def normalise(clt: CrossLayerTranscoder, x: Tensor, y: Tensor) -> None:
    """Scales and biases from some tokens."""
    sums = StatisticsAccumulator(clt.n_layers, clt.d_model)
    sums.update(x, y)
    clt.normalize(sums.result())


def fit(
    clt: CrossLayerTranscoder,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    steps: int,
    prior: Prior | None = None,
    lr: float = 5e-3,
) -> CrossLayerTranscoder:
    """Trains on batches of x, y and the tokens' studies; the rate falls to 0 over the last fifth."""
    optimizer = AdamW(clt.parameters(), lr=lr)
    config = LossConfig(extra=[] if prior is None else [prior])
    if prior is not None:
        prior.attach(clt)
        prior.check_length(steps)
    for step, (x, y, studies) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate = lr * min(1.0, 5 * (1 - step / steps))
        optimizer.zero_grad(set_to_none=True)
        parts = loss_parts(config, clt, y, clt(x), step, max_steps=steps, studies=studies)
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step()
        if prior is not None:
            prior.after_step(step, steps, rate)
    if prior is not None:
        prior.detach()
    return clt.eval()

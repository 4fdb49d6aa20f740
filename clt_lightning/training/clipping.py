"""Gradients no longer than a bound: by their norm over all features, wherever these are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from clt_lightning.parallel.transcoder import ShardedTranscoder
from clt_lightning.training.optim import AdamW
from clt_lightning.transcoder import CrossLayerTranscoder


def clip_by_norm(transcoder: CrossLayerTranscoder, optimizer: Optimizer, max_norm: float) -> None:
    """Shortens a transcoder's gradients to `max_norm`: in the optimizer's own pass over them, where it can.

    Args:
        transcoder: whose gradients.
        optimizer: what takes its next step with them.
        max_norm: the longest that they may be together.
    """
    if isinstance(optimizer, AdamW):
        optimizer.clip(_norm(transcoder), max_norm)
    elif isinstance(transcoder, ShardedTranscoder):
        transcoder.clip_grad_norm_(max_norm)
    else:
        torch.nn.utils.clip_grad_norm_(transcoder.parameters(), max_norm)


def _norm(transcoder: CrossLayerTranscoder) -> Tensor:
    if isinstance(transcoder, ShardedTranscoder):
        return transcoder.gradient_norm()
    return torch.nn.utils.get_total_norm([p.grad for p in transcoder.parameters() if p.grad is not None])

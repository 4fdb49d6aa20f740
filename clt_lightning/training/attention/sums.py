"""FVU and L0 of sparse attention over a split, in the module that trains it alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from clt_lightning.training.attention.learner import active_codes
from clt_lightning.transcoder.attention import AttentionOutput, SparseAttention


class Sums:
    """FVU and L0 of a split by layer, in float64.

    Args:
        attention: the units; sums live where they are.
    """

    def __init__(self, attention: SparseAttention) -> None:
        # measured from about the mean: a difference of huge sums would lose all digits; the same on all processes
        self.origin = (attention.b_dec.detach() * attention.y_scale[:, None]).double()
        self.total = torch.zeros_like(self.origin)
        self.error, self.square, self.active = (torch.zeros_like(self.origin[:, 0]) for _ in range(3))
        self.n = torch.zeros_like(self.origin[0, :1])

    @torch.no_grad()
    def update(self, y: Tensor, out: AttentionOutput) -> None:
        """Takes in `y (layers, images, positions, d_model)` and what was made of it."""
        wide = y.double()
        self.error += squares(wide - out.y_hat.double())
        wide = wide - self.origin[:, None, None]
        self.square += squares(wide)
        self.total += wide.sum((1, 2))
        tokens = y.shape[1] * y.shape[2]
        self.active += active_codes(out) * tokens
        self.n += tokens

    def result(self, over_processes: bool = False) -> tuple[Tensor, Tensor]:
        """`(layers,)` FVU and L0."""
        parts = [self.error, self.square, self.active, self.total, self.n]
        if over_processes:
            for part in parts:
                dist.all_reduce(part)
        spread = self.square - self.total.square().sum(1) / self.n
        return self.error / spread.clamp(min=1e-300), self.active / self.n


def squares(x: Tensor) -> Tensor:
    """`(layers,)`: sums of squares of `(layers, ...)`."""
    return x.square().flatten(1).sum(1)

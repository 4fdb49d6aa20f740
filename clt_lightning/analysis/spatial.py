"""How clustered a feature's map over the patches is."""

from __future__ import annotations

import torch
from torch import Tensor

#: A map counts for Moran's I if so many patches fire, and at most this share of all
MORAN_ACTIVE, MORAN_SHARE = 5, 0.9


def moran(maps: Tensor) -> Tensor:
    """Moran's I of maps `(images, rows, columns, F)`, with the eight neighbours of each place: `(images, F)`.

    NaN where fewer than `MORAN_ACTIVE` places fire, or more than `MORAN_SHARE` of them.
    """
    rows, columns = maps.shape[1:3]
    n = rows * columns
    active = (maps != 0).sum((1, 2))
    z = (maps - maps.mean((1, 2), keepdim=True)).double()
    square = z.square().sum((1, 2))
    total, pairs = torch.zeros_like(square), 0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = z[:, : rows - down, max(0, -right) : columns - max(0, right)]
        b = z[:, down:, max(0, right) : columns - max(0, -right)]
        total += (a * b).sum((1, 2))
        pairs += a.shape[1] * a.shape[2]
    counts = (active >= MORAN_ACTIVE) & (active <= MORAN_SHARE * n) & (square > 0)
    return torch.where(counts, total / max(pairs, 1) * n / square.clamp(min=1e-30), float("nan"))

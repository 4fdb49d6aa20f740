"""Do two groups of features span the same directions, also where no two of them are alike?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.feature_rows import Rows
from clt_lightning.core.files import finite

#: Share of a group's energy that its subspace holds
ENERGY = 0.9
#: Features of a group that are looked at, drawn from all
LARGEST = 2048


@dataclass(frozen=True)
class Overlap:
    """Two subspaces of the same dimension: what holds most of the energy of either group's unit rows.

    Attributes:
        features: of the two groups, those that were looked at.
        dimension: of each subspace: as many principal directions as the group that needs fewer takes for `ENERGY` of
            its rows' squares.
        width: of the space.
        overlap: mean squared cosine of the principal angles: 1 the same subspace, 0 orthogonal ones.
        chance: of two random subspaces, `dimension / width`.
        explained: share of the first's rows' squares within the second's subspace.
        single: mean squared cosine of the first's features with the nearest of the second's: one feature in the place
            of the group.
        angles: `(dimension,)` principal angles in degrees, the smallest first.
    """

    features: tuple[int, int]
    dimension: int
    width: int
    overlap: float
    chance: float
    explained: float
    single: float
    angles: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain values; of the angles the quartiles."""
        plain = ("dimension", "width", "overlap", "chance", "explained", "single")
        found: dict[str, Any] = {name: getattr(self, name) for name in plain}
        quartiles = np.quantile(self.angles, (0, 0.25, 0.5, 0.75, 1)).round(2).tolist()
        return finite(found | {"features": list(self.features), "angles": quartiles})  # type: ignore[no-any-return]


@torch.no_grad()
def subspace_overlap(a: Rows, b: Rows, energy: float = ENERGY, seed: int = 0) -> Overlap | None:
    """Compares the subspaces of two groups of rows of one space, from their cosines alone.

    Args:
        a: the first group.
        b: the second.
        energy: share of a group's squares that its subspace is to hold.
        seed: of the draw where a group has more than `LARGEST` features.

    Returns:
        None where a group has no feature that is not zero.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = (_some(group, generator) for group in (a, b))
    if not len(a) or not len(b):
        return None
    own = [_principal(group, energy) for group in (a, b)]
    r = min(count for _, count in own)
    cross = _cosines(a, b)
    (directions_a, _), (directions_b, _) = own
    inside = cross @ directions_b[:, :r]  # coordinates of the first's rows in the second's subspace
    cosines = torch.linalg.svdvals(directions_a[:, :r].T @ inside).clamp(max=1)
    width = sum(part.shape[1] for part in a.parts)
    return Overlap(
        features=(len(a), len(b)),
        dimension=r,
        width=width,
        overlap=float(cosines.square().mean()),
        chance=r / width,
        explained=float(inside.square().sum() / len(a)),
        single=float(cross.square().max(1).values.mean()),
        angles=torch.rad2deg(torch.acos(cosines)).cpu().numpy(),
    )


def _some(group: Rows, generator: torch.Generator) -> Rows:
    there = (group.inverse < 1e14).nonzero()[:, 0]  # rows of zeros have no direction
    if len(there) > LARGEST:
        drawn = torch.randperm(len(there), generator=generator)[:LARGEST].sort().values
        there = there[drawn.to(there.device)]
    return group.take(there)


def _cosines(a: Rows, b: Rows) -> Tensor:
    return a.cosines(torch.arange(len(a), device=a.inverse.device), b).double()


def _principal(group: Rows, energy: float) -> tuple[Tensor, int]:
    """`(n, k)`: principal directions as mixtures of the unit rows, the largest first; and how many hold the energy."""
    values, vectors = torch.linalg.eigh(_cosines(group, group))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    there = values > 1e-6 * values[0]  # float32 cosines: what is below is rounding
    values, vectors = values[there], vectors[:, there]
    share = values.cumsum(0) / values.sum()
    needed = min(int((share < energy - 1e-9).sum()) + 1, len(values))
    return vectors * values.rsqrt(), needed

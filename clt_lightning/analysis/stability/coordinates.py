"""Features that alone write to some coordinates: the other form of an anchor, after sparse VAEs.

There a factor is identified by coordinates of the data that depend on it alone (two or more a factor). Here a
coordinate is one of the channels of one layer's output, and it is a feature's own where nearly all of what is written
to it, over tokens, is that feature's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clt_lightning.analysis.matching import Side
from clt_lightning.analysis.stability.groups import Anchors, against
from clt_lightning.transcoder import CrossLayerTranscoder

#: A coordinate is a feature's own from this share of its energy on
ALONE = 0.9


@torch.no_grad()
def owned_coordinates(clt: CrossLayerTranscoder, power: np.ndarray | None = None, alone: float = ALONE) -> np.ndarray:
    """`(L, F)` int: how many coordinates each feature has to itself, over all layers that it writes to.

    Energies are added up as if features fired apart: where several write to a coordinate and cancel, none is alone.

    Args:
        clt: the transcoder.
        power: `(L, F)` mean square of each feature's code over tokens; None: the same of all.
        alone: least share of a coordinate's energy.
    """
    weights = torch.ones(clt.n_layers, clt.n_features) if power is None else torch.from_numpy(power).float()
    weights = weights.to(clt.b_dec.device)
    found = torch.zeros(clt.n_layers, clt.n_features, dtype=torch.long, device=weights.device)
    for target in range(clt.n_layers):
        sources = [source for source in range(target + 1) if clt.writes(source, target)]
        energies = [
            clt.W_dec[source][:, target - source].float().square() * weights[source, :, None] for source in sources
        ]
        total = torch.stack([energy.sum(0) for energy in energies]).sum(0)
        for source, energy in zip(sources, energies):
            found[source] += ((energy >= alone * total) & (energy > 0)).sum(1)
    return found.cpu().numpy()


def owners_against_others(
    clt: CrossLayerTranscoder,
    sides: Sequence[Side],
    power: np.ndarray | None = None,
    rates: np.ndarray | None = None,
    alone: float = ALONE,
    seed: int = 0,
) -> Anchors | None:
    """Whether features with a coordinate of their own are found again more often; None where there is none.

    Args:
        clt: the transcoder whose features they are.
        sides: one per layer.
        power: as `owned_coordinates` takes it.
        rates: `(L, F)` firing rates.
        alone: as `owned_coordinates` takes it.
        seed: of the intervals.
    """
    owned = owned_coordinates(clt, power, alone)
    writes = np.stack([(W.detach() != 0).flatten(1).any(1).cpu().numpy() for W in clt.W_dec])
    if not (owned > 0).any():
        return None
    return against(sides, owned > 0, (owned == 0) & writes, rates, seed)

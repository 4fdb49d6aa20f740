"""Which features of the layer before a feature is nearest to: by weights, by what they are over images, by edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.transcoder import CrossLayerTranscoder

#: Features of a layer compared at once with all of the layer before
_CHUNK = 1024
#: Features of a layer whose nearest one by chance is looked up
_BY_CHANCE = 512
#: Chains that are told at most, and the share of a chain's features that stronger ones may have too
_CHAINS, _SHARED = 12, 0.5


@dataclass(frozen=True)
class Matches:
    """For each feature of a layer, its nearest ones in the layer before.

    Attributes:
        feature: `(F, n)` int64, nearest first; -1 where there is none.
        value: `(F, n)`: how near; NaN where there is none.
    """

    feature: Tensor
    value: Tensor

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"feature": self.feature.tolist(), "value": rounded(self.value)}


@dataclass(frozen=True)
class Chain:
    """Features that are nearest to each other, one of each layer.

    Attributes:
        features: of each layer, the first layer's first.
        values: how near each is to the one before, one fewer.
    """

    features: tuple[int, ...]
    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"features": list(self.features), "values": [round(v, 6) for v in self.values]}


def weight_directions(
    clt: CrossLayerTranscoder, layer: int, alive: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """What features of a layer write where those of the next one read, and what these read: `(F, d)` each, of length 1.

    A per-layer transcoder's, and an autoencoder's, features write into their own layer; what they write stays in the
    stream. Where encoders do not see a token's mean, it is taken off. Rows of features that never fire are zero.

    Args:
        clt: the transcoder.
        layer: the earlier layer.
        alive: `(F,)` of either layer: which features fire; None: all.
    """
    target = layer + 1 if clt.writes(layer, layer + 1) else layer
    written = clt.W_dec[layer].detach()[:, target - layer].float()
    read = clt.W_enc[layer + 1].detach().float()
    if clt.normalization == "token" or clt.sites.read == "mlp_in":
        written, read = (part - part.mean(1, keepdim=True) for part in (written, read))
    found = [F.normalize(part, dim=1) for part in (written, read)]
    if alive is not None:
        found = [part * some[:, None].to(part) for part, some in zip(found, alive)]
    return found[0], found[1]


def nearest(before: Tensor, after: Tensor, n: int) -> Matches:
    """Of each row of `after (F, d)`, the rows of `before (F, d)` with the largest products; zero rows match nobody."""
    n = min(n, len(before))
    features, values = [], []
    empty = ~before.any(1)
    for some in after.split(_CHUNK):
        found = (some @ before.T).masked_fill(empty, float("-inf"))
        found[~some.any(1)] = float("-inf")
        top = found.topk(n, dim=1)
        none = top.values == float("-inf")
        features.append(torch.where(none, -1, top.indices))
        values.append(torch.where(none, float("nan"), top.values))
    return Matches(torch.cat(features).cpu(), torch.cat(values).cpu())


def by_chance(before: Tensor, after: Tensor, mixed: bool, seed: int = 0) -> Tensor:
    """How near the nearest would be without any relation: of some features of the later layer.

    Args:
        before: `(F, d)` as for `nearest`.
        after: `(F, d)`.
        mixed: against random mixtures of the rows of `before`, which lie in the same subspace; otherwise against the
            same rows with their columns (images) in another order.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, readers = before[before.any(1)], after[after.any(1)]
    if not len(rows) or not len(readers):
        return torch.zeros(0)
    if mixed:
        rows = F.normalize(torch.randn(len(rows), len(rows), generator=generator).to(rows) @ rows, dim=1)
    else:
        rows = rows[:, torch.randperm(rows.shape[1], generator=generator).to(rows.device)]
    chosen = torch.randperm(len(readers), generator=generator)[:_BY_CHANCE].to(readers.device)
    return nearest(rows, readers[chosen], 1).value[:, 0]


def edge_matches(total: list[Tensor], n: int) -> list[Matches]:
    """From summed edges `(F, F + 1)` of each pair of layers (readers by sources, the error last): the strongest.

    Only positive ones count.
    """
    found = []
    for weight in total:
        top = weight[:, :-1].topk(min(n, weight.shape[1] - 1), dim=1)
        none = top.values <= 0
        found.append(Matches(torch.where(none, -1, top.indices), torch.where(none, float("nan"), top.values)))
    return found


def largest_share(weight: Tensor) -> Tensor:
    """`(F,)`: of summed edges `(F, F + 1)`, the strongest one's share of all positive ones into a feature.

    The error's counts among all. NaN for features without a positive edge.
    """
    positive = weight.clamp(min=0)
    return positive[:, :-1].amax(1) / torch.where(positive.sum(1) > 0, positive.sum(1), float("nan"))


def chains(pairs: Sequence[Matches], n: int = _CHAINS) -> list[Chain]:
    """The strongest chains: from each feature of the last layer back to the nearest one before, to the first layer.

    A chain is as strong as its weakest link. One that shares more than half of its features with a stronger one is left
    out.
    """
    if not pairs:
        return []
    at = torch.arange(len(pairs[-1].feature))
    features, values = [at], []
    for match in reversed(pairs):
        known = at >= 0
        step = match.value[at.clamp(min=0), 0]
        values.append(torch.where(known & ~step.isnan(), step.double(), float("-inf")))
        at = torch.where(known, match.feature[at.clamp(min=0), 0], -1)
        features.append(at)
    weakest = torch.stack(values).amin(0)
    found: list[Chain] = []
    taken: set[tuple[int, int]] = set()
    for index in weakest.argsort(descending=True, stable=True).tolist():
        if len(found) == n or weakest[index] == float("-inf"):
            break
        path = [int(part[index]) for part in reversed(features)]
        if sum(place in taken for place in enumerate(path)) > _SHARED * len(path):
            continue
        taken.update(enumerate(path))
        found.append(Chain(tuple(path), tuple(float(part[index]) for part in reversed(values))))
    return found


def agreement(a: Matches, b: Matches) -> float | None:
    """The share of features for which both name the same one as nearest, among those for which both name one."""
    both = (a.feature[:, 0] >= 0) & (b.feature[:, 0] >= 0)
    return float((a.feature[both, 0] == b.feature[both, 0]).double().mean()) if bool(both.any()) else None


def ranked(profiles: Tensor) -> Tensor:
    """Ranks of each row, ties at their mean, centred and of length 1; 0 for a row of equal numbers."""
    order = profiles.argsort(dim=1, stable=True)
    ranks = torch.empty_like(profiles, dtype=torch.float64)
    steps = torch.arange(profiles.shape[1], dtype=torch.float64).expand_as(profiles)
    ranks.scatter_(1, order, steps)
    for row, values in enumerate(profiles):  # ties: zeros, mostly
        _, owner, count = values.unique(return_inverse=True, return_counts=True)
        if len(count) < len(values):
            mean = torch.zeros(len(count), dtype=torch.float64).index_add_(0, owner, ranks[row]) / count
            ranks[row] = mean[owner]
    centred = ranks - ranks.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-9, centred / length.clamp(min=1e-12), 0.0).float()


def number(value: float) -> float | None:
    """A number with few digits; None for NaN."""
    return None if value != value else round(value, 6)


def rounded(values: Tensor) -> list[Any]:
    """A tensor of one or two dimensions as lists of `number`."""
    found: list[Any] = values.tolist()
    return [[number(v) for v in row] if isinstance(row, list) else number(row) for row in found]

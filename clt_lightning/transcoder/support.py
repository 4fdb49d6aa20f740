"""The depth support of features: which layers each one writes to, read off groups of the decoder that are exactly 0.

A group is `W_dec[i -> j, f]`, the `d_out` weights with which feature f of layer i writes to layer j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder


@torch.no_grad()
def group_norms(clt: CrossLayerTranscoder, layer: int) -> Tensor:
    """`(F, targets)`: norms of the groups of a layer's features, in scaled units."""
    norms: Tensor = torch.linalg.vector_norm(clt.W_dec[layer], dim=2)
    return norms


def relative_norms(norms: Tensor) -> Tensor:
    """`(F, targets)` group norms over the root mean square of the feature's own; 0 for a feature without a decoder.

    1 is a feature's average group, whatever the scale of its decoder and however many layers it may write to.
    """
    mean = norms.square().mean(1, keepdim=True).sqrt()
    return torch.where(mean > 0, norms / mean.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)


@dataclass(frozen=True)
class DepthSupport:
    """Which layers the features write to.

    Attributes:
        written: one `(F, targets)` bool a source layer i, of the target layers `i .. i + targets - 1`.
    """

    written: tuple[Tensor, ...]

    def targets(self, layer: int, feature: int) -> list[int]:
        """The layers that a feature of `layer` writes to; empty for one without a decoder."""
        return [layer + t for t in self.written[layer][feature].nonzero().flatten().tolist()]

    def counts(self) -> Tensor:
        """`(layers, F)` int64: how many layers each feature writes to."""
        return torch.stack([w.sum(1) for w in self.written])

    def anchors(self) -> Tensor:
        """`(layers, F)` bool: features that write to exactly one layer, of those that could write to several.

        Features of a layer that has one target alone (the last one's, or all of a per-layer transcoder's) are none:
        for them it is no finding.
        """
        return torch.stack([(w.sum(1) == 1) & (w.shape[1] > 1) for w in self.written])

    @property
    def n_groups(self) -> int:
        """Groups that are there, of all features."""
        return sum(int(w.sum()) for w in self.written)

    @property
    def share(self) -> float:
        """Share of the groups that are not zero."""
        return self.n_groups / max(1, sum(w.numel() for w in self.written))

    @property
    def mean_groups(self) -> float:
        """Mean number of groups of a feature, over features that have any."""
        counts = self.counts()
        return float(counts.sum()) / max(1, int((counts > 0).sum()))

    def agreement(self, truth: DepthSupport) -> float:
        """Share of groups that are there in both or in neither.

        Raises:
            UserError: the two are of different shapes.
        """
        if [w.shape for w in self.written] != [w.shape for w in truth.written]:
            raise UserError("the two depth supports are of transcoders of different shapes")
        same = sum(int((a == b).sum()) for a, b in zip(self.written, truth.written))
        return same / max(1, sum(w.numel() for w in self.written))


@torch.no_grad()
def depth_support(clt: CrossLayerTranscoder, below: float = 0.0) -> DepthSupport:
    """The layers that each feature writes to.

    Args:
        clt: the transcoder.
        below: groups count as absent up to this relative norm (`relative_norms`: 1 is the feature's average group);
            0: those that are exactly 0.

    Raises:
        UserError: `below` is negative.
    """
    if not below >= 0:
        raise UserError(f"depth_support: below must not be negative, got {below}")
    return DepthSupport(tuple(relative_norms(group_norms(clt, i)).cpu() > below for i in range(clt.n_layers)))


@torch.no_grad()
def prune_groups(clt: CrossLayerTranscoder, keep: float | None = None, below: float | None = None) -> DepthSupport:
    """Sets the smallest groups to zero, in place: the baseline that a prior on the groups must beat.

    A feature keeps its largest group in any case.

    Args:
        clt: the transcoder.
        keep: share of the groups that stay, those of the largest relative norms, over all layers.
        below: in its place: groups up to this relative norm go.

    Returns:
        what is left.

    Raises:
        UserError: both are given or neither, or they are out of range; or `keep` is less than a group per feature.
    """
    if (keep is None) == (below is None):
        raise UserError("prune_groups: give keep (a share) or below (a relative norm), one of the two")
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"prune_groups: keep must be above 0 and at most 1, got {keep}")
    if below is not None and not below >= 0:
        raise UserError(f"prune_groups: below must not be negative, got {below}")
    ranks = group_ranks(clt)
    if below is None:
        below = cut_rank(torch.cat([rank.flatten() for rank in ranks]), keep or 0.0)
    kept = [rank > below for rank in ranks]
    hold(clt, kept)
    return DepthSupport(tuple(k.cpu() for k in kept))


def group_ranks(clt: CrossLayerTranscoder) -> list[Tensor]:
    """One `(F, targets)` per layer: relative norms, and infinity for the largest group of each feature."""
    ranks = []
    for layer in range(clt.n_layers):
        norms = relative_norms(group_norms(clt, layer))
        largest = norms.amax(1, keepdim=True)
        first = torch.zeros_like(norms, dtype=torch.bool).scatter_(1, norms.argmax(1, keepdim=True), True)
        ranks.append(norms.masked_fill(first & (largest > 0), torch.inf))
    return ranks


def cut_rank(ranks: Tensor, keep: float) -> float:
    """The rank that a group must exceed where a share `keep` of all is to stay.

    Raises:
        UserError: fewer than one per feature.
    """
    wanted, least = round(keep * ranks.numel()), int(ranks.isinf().sum())
    if wanted < least:
        raise UserError(
            f"keep={keep:g} of the groups would leave less than one per feature: take {least / ranks.numel():.3f} or "
            "more"
        )
    below = ranks.sort(descending=True).values[wanted:]
    return float(below[0]) if len(below) else 0.0


@torch.no_grad()
def hold(clt: CrossLayerTranscoder, kept: list[Tensor]) -> None:
    """Sets the groups outside `kept` (one `(F, targets)` bool a layer) to exactly 0, in place."""
    for W, there in zip(clt.W_dec, kept):
        W.masked_fill_(~there.unsqueeze(-1), 0.0)

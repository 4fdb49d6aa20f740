"""Whether features that write to one layer come back from another seed more surely than the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clt_lightning.analysis.matching import LayerMatching
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.support import DepthSupport


@dataclass(frozen=True)
class AnchorAgreement:
    """Agreement with another transcoder of anchors, and of the other features of the same layers.

    Attributes:
        share: share of living features, of layers with several targets, that are anchors.
        anchors: mean cosine with the nearest feature of the other one (the smaller of decoder and encoder); NaN: none.
        others: the same of the other features.
        low, high: 95 % bootstrap interval over features of `anchors - others`.
    """

    share: float
    anchors: float
    others: float
    low: float
    high: float


def anchor_agreement(
    support: DepthSupport, matching: Sequence[LayerMatching], draws: int = 1000, seed: int = 0
) -> AnchorAgreement:
    """The claim "sparse support makes identifiable", tested on one pair of transcoders.

    Args:
        support: of the first transcoder (`depth_support`).
        matching: of it with another one (`match_features(first, second)`).
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: the two are of different layers.
    """
    if len(support.written) != len(matching):
        raise UserError(f"the support is of {len(support.written)} layers, the matching of {len(matching)}")
    anchors = support.anchors().numpy()
    ones, rest = [], []
    for found in matching:
        if support.written[found.layer].shape[1] < 2:
            continue
        lives = found.a.state != 0
        cosine, anchor = found.a.both[lives], anchors[found.layer][lives]
        ones.append(cosine[anchor])
        rest.append(cosine[~anchor])
    a, b = (np.concatenate(part).astype(np.float64) if part else np.zeros(0) for part in (ones, rest))
    if not len(a) or not len(b):
        nothing = float("nan")
        means = (float(a.mean()) if len(a) else nothing, float(b.mean()) if len(b) else nothing)
        return AnchorAgreement(len(a) / max(1, len(a) + len(b)), *means, nothing, nothing)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(a, len(a)).mean() - rng.choice(b, len(b)).mean() for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return AnchorAgreement(len(a) / (len(a) + len(b)), float(a.mean()), float(b.mean()), float(low), float(high))

"""How features' codes are added up to one number an image that tells the cue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clt_lightning.analysis.debias.choose import goes_with
from clt_lightning.analysis.debias.codes import MeanCodes
from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.interventions.mean_ablation import Feature


def attribute_weights(found: MeanCodes, groups: Groups, features: Sequence[Feature]) -> Tensor:
    """`(features, attributes - 1)`: codes by their difference between values of the attribute at fixed kind.

    Args:
        found: of images of every group; each group counts as much, however many images it has.
        groups: how groups are numbered.
        features: whose codes.
    """
    codes = found.picked(features)
    means = torch.stack([codes[found.groups == i].mean(0) for i in range(groups.n)])
    squares = torch.stack([codes[found.groups == i].square().mean(0) for i in range(groups.n)])
    by_value = means.unflatten(0, (-1, groups.attributes)).sum(0)
    return _per_square(by_value[1:] - by_value[0], squares.mean(0) - means.mean(0).square())


def lost_weights(biased: MeanCodes, unbiased: MeanCodes, features: Sequence[Feature]) -> Tensor:
    """`(features, 1)`: codes by how much they go with classes in biased images and not in unbiased ones.

    No labels of groups are read. Of many classes the one pattern over features that explains most.
    """
    n = 1 + int(max(biased.labels.max(), unbiased.labels.max()))
    codes = biased.picked(features)
    lost = goes_with(codes, biased.labels, n) - goes_with(unbiased.picked(features), unbiased.labels, n)
    pattern = torch.linalg.svd(lost, full_matrices=False)[2][:1]
    return _per_square(pattern * codes.std(0), codes.var(0, correction=0))


def common_weights(unbiased: MeanCodes, features: Sequence[Feature]) -> Tensor:
    """`(features, 1)`: what codes have most in common over images: their first principal component, no labels read."""
    codes = unbiased.picked(features)
    std = codes.std(0, correction=0)
    scaled = torch.where(std > 1e-9, (codes - codes.mean(0)) / std.clamp(min=1e-9), torch.zeros(()))
    component = torch.linalg.svd(scaled, full_matrices=False)[2][:1]
    return _per_square(component * std, std.square())


def _per_square(rows: Tensor, variance: Tensor) -> Tensor:
    """`(features, sums)`: rows over the variance of codes, so that a code's unit plays no part; 0 where it is off."""
    return torch.where(variance > 1e-18, rows / variance.clamp(min=1e-18), torch.zeros(())).T

"""Which features carry a cue, in which order: with labels of the attribute, or from unbiased images without them."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.analysis.debias.relevance import Relevance
from clt_lightning.analysis.debias.truth import auroc
from clt_lightning.interventions.mean_ablation import Feature

#: A circuit is the fewest features that carry this share of the relevance
CIRCUIT = 0.98


def by_circuits(found: Relevance, groups: Groups) -> Tensor:
    """`(layers, F)`: how much more a feature belongs to the circuit of one value of the attribute than of another.

    Relevance is compared at fixed kind, so that what differs between classes does not count; a feature that does as
    much for one value as for the other, in the intersection, has 0.

    Args:
        found: of a sample with images of every group.
        groups: how groups are numbered.
    """
    score = torch.zeros(found.values.shape[1:])
    for kind in range(groups.n // groups.attributes):
        first = kind * groups.attributes
        means = torch.stack([found.values[found.groups == first + a].mean(0) for a in range(groups.attributes)])
        score += means.amax(0) - means.amin(0)
    return score


def by_codes(found: Relevance, groups: Groups) -> Tensor:
    """`(layers, F)`: how well a feature's mean code tells values of the attribute, at fixed kind: |2 AUROC - 1|.

    Args:
        found: of a sample with images of every group.
        groups: how groups are numbered.
    """
    flat = found.activity.flatten(1)
    score = torch.zeros(flat.shape[1])
    kinds = groups.n // groups.attributes
    for kind in range(kinds):
        of = [flat[found.groups == kind * groups.attributes + a] for a in range(groups.attributes)]
        told = torch.zeros_like(score)
        for a in range(groups.attributes):
            for b in range(a):
                told = torch.maximum(told, (2 * auroc(of[a], of[b]) - 1).abs())
        score += told / kinds
    return score.view(found.values.shape[1:])


def by_coactivation(biased: Relevance, unbiased: Relevance) -> Tensor:
    """`(layers, F)`: how much of a feature's going with a class is lost on unbiased images.

    No labels of groups are read. Going with a class is the correlation of the mean code with being of the class.

    Args:
        biased: of training images.
        unbiased: of images in which the cue does not go with the class, labelled with the same classes.
    """
    n = 1 + int(max(biased.labels.max(), unbiased.labels.max()))
    lost = (goes_with(biased, n) - goes_with(unbiased, n)).amax(0)
    return lost.clamp(min=0)


def by_target(biased: Relevance, unbiased: Relevance) -> Tensor:
    """`(layers, F)`: influence, and low co-activation with the class's most influential feature on unbiased images.

    As VisionCLT has it, for unbiased images without labels: the mean relevance for a class, times the share of its
    training images with both active, over the share of unbiased images with both active.

    Args:
        biased: of training images.
        unbiased: of images in which the cue does not go with the class.
    """
    scores = []
    on_unbiased = (unbiased.activity != 0).float().flatten(1)
    for label in biased.labels.unique():
        mine = biased.labels == label
        influence = biased.values[mine].mean(0).clamp(min=0).flatten()
        on = (biased.activity[mine] != 0).float().flatten(1)
        target = int(influence.argmax())
        both = (on * on[:, [target]]).mean(0)
        there = (on_unbiased * on_unbiased[:, [target]]).mean(0)
        scores.append(influence * both / (there + 1 / len(on_unbiased)))
    return torch.stack(scores).amax(0).view(biased.values.shape[1:])


def in_circuit(found: Relevance) -> Tensor:
    """`(layers, F)` bool: the fewest features that carry `CIRCUIT` of all absolute relevance."""
    size = found.values.abs().mean(0).flatten()
    order = size.argsort(descending=True, stable=True)
    before = size[order].cumsum(0) - size[order]
    kept = torch.zeros(len(size), dtype=torch.bool)
    kept[order[before < CIRCUIT * size.sum()]] = True
    return (kept & (size > 0)).view(found.values.shape[1:])


def ordered(score: Tensor, within: Tensor | None = None) -> list[Feature]:
    """Features of a score above 0, the highest first.

    Args:
        score: `(layers, F)`.
        within: `(layers, F)` bool: the others are left out.
    """
    flat = (score if within is None else torch.where(within, score, torch.zeros(()))).flatten()
    order = flat.argsort(descending=True, stable=True)
    width = score.shape[1]
    return [divmod(int(i), width) for i in order[flat[order] > 0]]


def goes_with(found: Relevance, n_classes: int) -> Tensor:
    """`(classes, layers, F)` correlations of mean codes with being of each class; 0 for classes without images."""
    activity = found.activity - found.activity.mean(0)
    std = activity.square().mean(0).sqrt()
    rows = []
    for label in range(n_classes):
        y = (found.labels == label).float()
        y = y - y.mean()
        product = (activity * y[:, None, None]).mean(0)
        scale = std * y.square().mean().sqrt()
        rows.append(torch.where(scale > 1e-12, product / scale.clamp(min=1e-12), torch.zeros(())))
    return torch.stack(rows)

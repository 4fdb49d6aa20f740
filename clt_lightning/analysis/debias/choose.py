"""Which features carry a cue, in which order: with labels of the attribute, or from unbiased images without them."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.debias.codes import MeanCodes
from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.analysis.debias.relevance import Relevance
from clt_lightning.analysis.debias.truth import auroc, rank_sums
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


def by_codes(found: MeanCodes, groups: Groups) -> Tensor:
    """`(layers, F)`: how well a feature's mean code tells values of the attribute, at fixed kind.

    The size of Cliff's delta, the chance that a code with one value of the attribute is above one with another less
    the chance that it is below, averaged over kinds with its sign: of more than two values the two that differ most.

    Args:
        found: of images of every group, as many of each as there are.
        groups: how groups are numbered.
    """
    kinds = range(groups.n // groups.attributes)
    rows = []
    for layer in range(found.activity.shape[1]):
        codes = found.layer(layer)
        of = [codes[found.groups == group] for group in range(groups.n)]
        told = torch.zeros(codes.shape[1])
        for a in range(groups.attributes):
            for b in range(a):
                deltas = [2 * auroc(of[k * groups.attributes + a], of[k * groups.attributes + b]) - 1 for k in kinds]
                told = torch.maximum(told, torch.stack(deltas).mean(0).abs())
        rows.append(told)
    return torch.stack(rows)


def by_coactivation(biased: MeanCodes, unbiased: MeanCodes) -> Tensor:
    """`(layers, F)`: how much of a feature's going with a class is lost on unbiased images.

    No labels of groups are read. Going with a class is Cliff's delta of the mean code between images of the class and
    the others.

    Args:
        biased: of training images.
        unbiased: of images in which the cue does not go with the class, labelled with the same classes.
    """
    n = 1 + int(max(biased.labels.max(), unbiased.labels.max()))
    layers = range(biased.activity.shape[1])
    lost = [
        class_deltas(biased.layer(layer), biased.labels, n) - class_deltas(unbiased.layer(layer), unbiased.labels, n)
        for layer in layers
    ]
    return torch.stack([found.amax(0) for found in lost]).clamp(min=0)


def by_target(biased: Relevance, unbiased: MeanCodes) -> Tensor:
    """`(layers, F)`: influence, and low co-activation with the class's most influential feature on unbiased images.

    As VisionCLT has it, for unbiased images without labels: the mean relevance for a class, times the share of its
    training images with both active, over the share of unbiased images with both active.

    Args:
        biased: of training images.
        unbiased: of images in which the cue does not go with the class.
    """
    scores = []
    width = biased.values.shape[2]
    for label in biased.labels.unique():
        mine = biased.labels == label
        influence = biased.values[mine].mean(0).clamp(min=0).flatten()
        on = (biased.activity[mine] != 0).float().flatten(1)
        target = int(influence.argmax())
        both = (on * on[:, [target]]).mean(0)
        with_target = (unbiased.layer(target // width)[:, [target % width]] != 0).float()
        there = torch.cat([((unbiased.layer(i) != 0) * with_target).mean(0) for i in range(biased.values.shape[1])])
        scores.append(influence * both / (there + 1 / len(unbiased.labels)))
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


def class_deltas(codes: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """`(classes, F)` Cliff's delta of codes `(images, F)` between each class and the others; 0 for classes without."""
    members = labels == torch.arange(n_classes)[:, None]
    n = members.sum(1, keepdim=True).double()
    pairs = n * (len(labels) - n)
    above = rank_sums(codes, members) - n * (n + 1) / 2
    return torch.where(pairs > 0, 2 * above / pairs.clamp(min=1) - 1, torch.zeros(())).float()


def goes_with(codes: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """`(classes, F)` correlations of codes `(images, F)` with being of each class; 0 for classes without images."""
    codes = codes - codes.mean(0)
    std = codes.square().mean(0).sqrt()
    rows = []
    for label in range(n_classes):
        y = (labels == label).float()
        y = y - y.mean()
        scale = std * y.square().mean().sqrt()
        product = (codes * y[:, None]).mean(0)
        rows.append(torch.where(scale > 1e-12, product / scale.clamp(min=1e-12), torch.zeros(())))
    return torch.stack(rows)

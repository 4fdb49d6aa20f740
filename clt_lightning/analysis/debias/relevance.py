"""What every feature does for the class of an image, by one gradient of the live model, and its means over groups."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful import Features
from clt_lightning.analysis.debias.predictor import Head, Sample
from clt_lightning.backbone import Backbone
from clt_lightning.core.progress import Progress
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Relevance:
    """Of some images and every feature.

    Attributes:
        values: `(images, layers, F)`: by how much the margin of the image's class (its logit less the others' mean)
            grows with the feature's code being what it is and not its mean, to first order, summed over positions.
        activity: `(images, layers, F)`: the mean code over positions.
        labels: `(images,)`; `groups`: `(images,)`.
    """

    values: Tensor
    activity: Tensor
    labels: Tensor
    groups: Tensor


def relevance_of(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    sample: Sample,
    head: Head,
    means: Tensor,
    batch: int = 32,
    progress: bool = False,
) -> Relevance:
    """Relevance of every feature for every image of a sample.

    Args:
        clip: the backbone.
        clt: the transcoder.
        sample: the images.
        head: what makes class logits.
        means: `(layers, positions, F)` mean codes.
        batch: images at once.
        progress: say how far it is.

    Raises:
        UserError: a site after the blocks.
    """
    units = Features(clip, clt)
    values, activity = [], []
    with Progress("relevance", len(sample.labels), "images", show=progress) as bar:
        for part in sample.batches(batch):
            some, codes = _of_batch(clip, clt, units, part["image"].to(clip.device), part["label"], head, means)
            values.append(some.cpu())
            activity.append(codes.cpu())
            bar.update(len(part["label"]))
    return Relevance(torch.cat(values), torch.cat(activity), sample.labels, sample.groups)


def _of_batch(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    units: Features,
    images: Tensor,
    labels: Tensor,
    head: Head,
    means: Tensor,
) -> tuple[Tensor, Tensor]:
    n = len(images)
    read: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}

    def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        y = compute()
        if units.read == units.write:
            read[block] = y.detach()
        leaves[block] = torch.zeros_like(y).requires_grad_()
        return y + leaves[block]

    # Lightning evaluates in inference mode, whose tensors never enter a graph
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        if units.read != units.write:
            keep = lambda block, x: read.__setitem__(block, x.detach())  # noqa: E731
            stack.enter_context(clip.watch(keep, units.blocks, units.read))
        stack.enter_context(clip.override(units.write, put, units.blocks))
        margin = head.margin(clip.encode_image(images.clone(), grad=True), labels)
        wanted = [leaves[block] for block in units.blocks]
        gradients = torch.autograd.grad(margin.sum(), wanted, materialize_grads=True)
    values, activity = [], []
    with torch.no_grad():
        flat = [read[block].flatten(0, 1) for block in units.blocks]
        scaled = [
            gradient.flatten(0, 1).float() * units.sizes(layer, flat[layer]) for layer, gradient in enumerate(gradients)
        ]
        for layer in range(clt.n_layers):
            codes = units.encode(layer, flat[layer]).unflatten(0, (n, -1))
            slopes = torch.zeros_like(codes)
            for target in range(layer, clt.n_layers):
                if clt.writes(layer, target):
                    decoders = clt.W_dec[layer][:, target - layer] * clt.y_scale[target]
                    slopes += (scaled[target] @ decoders.T).view_as(codes)
            values.append((slopes * (codes - means[layer].to(codes))).sum(1))
            activity.append(codes.mean(1))
    return torch.stack(values, 1), torch.stack(activity, 1)

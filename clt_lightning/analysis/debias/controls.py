"""What debiasing by features is held against: heads' direct writing, a direction of the embedding, random features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.analysis.debias.predictor import Embedded, Head, Sample, within
from clt_lightning.analysis.probes.fit import Rows, fit_classes
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.mean_ablation import Feature

#: (block, head)
Place = tuple[int, int]
#: Features nearest in activity among which a random one is drawn
_NEAREST = 10


def matched(features: Sequence[Feature], activity: Tensor, seed: int) -> list[Feature]:
    """Random features of equal activity: for each one of its layer, drawn from those with the nearest mean code.

    Args:
        features: what they are to match; none of them is drawn.
        activity: `(layers, F)` mean codes.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    taken = set(features)
    found = []
    for layer, feature in features:
        row = activity[layer].abs()
        order = (row - row[feature]).abs().argsort(stable=True).tolist()
        free = [i for i in order if (layer, i) not in taken and row[i] > 0][:_NEAREST]
        if free:
            chosen = (layer, free[int(rng.integers(len(free)))])
            taken.add(chosen)
            found.append(chosen)
    return found


@contextmanager
def projected(clip: Backbone, directions: Tensor, mean: Tensor, read: Tensor | None = None) -> Iterator[None]:
    """While active, unit embeddings stand at their mean along some directions.

    Args:
        clip: the backbone.
        directions: `(embed_dim, n)`, along which they are moved; orthonormal if nothing else is read.
        mean: `(embed_dim,)`.
        read: `(embed_dim, n)`, what is read and comes to its mean, `read.T @ directions` being the identity; None:
            the directions themselves.
    """

    def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        own = compute().float()
        unit = F.normalize(own, dim=-1)
        write = directions.to(unit)
        seen = write if read is None else read.to(unit)
        return (unit - (unit - mean.to(unit)) @ seen @ write.T).to(x.dtype)

    with clip.override("final", put):
        yield


def cue_directions(train: Embedded, val: Embedded, groups: Groups, seed: int) -> Tensor:
    """`(embed_dim, attributes - 1)`: where linear probes of the attribute read, groups being balanced."""
    rows = []
    for part in (train, val):
        told = part.need_groups("train")
        part = part.select(groups.balanced(told, seed))
        assert part.groups is not None
        rows.append(Rows(part.embeddings, groups.attribute(part.groups)))
    probe = fit_classes(rows[0], rows[1], groups.attributes)
    centred = probe.weight - probe.weight.mean(1, keepdim=True)
    basis: Tensor = torch.linalg.svd(centred, full_matrices=False)[0][:, : groups.attributes - 1]
    return basis


def attribute_differences(train: Embedded, groups: Groups) -> Tensor:
    """`(embed_dim, attributes - 1)`: differences of mean embeddings between the values, summed over kinds."""
    told = train.need_groups("train")
    means = torch.stack([train.embeddings[told == i].mean(0) for i in range(groups.n)])
    by_value = means.unflatten(0, (-1, groups.attributes)).sum(0)
    differences: Tensor = by_value[1:] - by_value[0]
    return differences.T


def class_differences(biased: Embedded, unbiased: Embedded, n_classes: int) -> Tensor:
    """`(embed_dim, 1)`: where the means of classes differ more in biased images than in unbiased ones; no labels of
    groups are read.

    The direction of the largest part of `(mean of a class - mean of all, biased) - (the same, unbiased)` over classes.
    """
    lost = torch.zeros(n_classes, biased.embeddings.shape[1])
    for part, sign in ((biased, 1), (unbiased, -1)):
        for label in part.labels.unique().tolist():
            lost[label] += sign * (part.embeddings[part.labels == label].mean(0) - part.embeddings.mean(0))
    found: Tensor = torch.linalg.svd(lost, full_matrices=False)[2][:1].T
    return found


def least_squares_read(directions: Tensor, train: Embedded) -> Tensor:
    """`(embed_dim, n)`: what tells how far an embedding stands along directions, given how those of one class vary.

    Moving embeddings along `directions` until this is at its mean is LEACE (2306.03819), the class being the same: of
    all maps after which means do not differ along them, the one that moves embeddings least.

    Args:
        directions: `(embed_dim, n)`.
        train: training images.
    """
    rows = within(train.embeddings, train.labels)
    spread = rows.T @ rows / len(rows)
    spread = spread + 1e-4 * spread.diagonal().mean() * torch.eye(len(spread))
    read = torch.linalg.solve(spread, directions)
    weights: Tensor = read @ torch.linalg.inv(directions.T @ read)
    return weights


class Heads:
    """Attention heads by what they write straight into the last [CLS] residual (as LTC does, 2505.17425).

    Args:
        clip: a backbone that reads its embedding from [CLS].

    Raises:
        UserError: another backbone, or attention whose heads do not simply add up.
    """

    def __init__(self, clip: Backbone) -> None:
        from clt_lightning.analysis.circuits.open_clip_parts import parts_of

        if clip.readout() is None:
            raise UserError(f"'{clip.name}' does not read its embedding from [CLS]")
        blocks = parts_of(clip).blocks
        if any(block.post_attention is not None or block.attention.inner_norm is not None for block in blocks):
            raise UserError(f"'{clip.name}' has a norm behind its heads: what they write does not add up")
        self.clip, self.n = clip, blocks[0].attention.n_heads
        self._out = []
        for block in blocks:
            matrix = block.attention.out.weight.detach().float().T  # (heads * channels, d_model)
            if block.attention.head_scale is not None:
                scale = block.attention.head_scale.detach().float().repeat_interleave(len(matrix) // self.n)
                matrix = matrix * scale[:, None]
            self._out.append(matrix if block.scale_1 is None else matrix * block.scale_1.detach().float())

    @torch.no_grad()
    def writes(self, images: Tensor) -> Tensor:
        """`(images, layers, heads, d_model)` what each head adds at [CLS], without the output's bias."""
        rows: list[Tensor] = []

        def see(block: int, z: Tensor) -> None:
            rows.append(self._split(block, z[:, 0].float()))

        with self.clip.watch(see, site="attn_z"):
            self.clip.encode_image(images)
        return torch.stack(rows, 1)

    def _split(self, block: int, z: Tensor) -> Tensor:
        matrix = self._out[block].to(z.device).unflatten(0, (self.n, -1))
        return torch.einsum("nhc,hcd->nhd", z.unflatten(1, (self.n, -1)), matrix)

    def means(self, sample: Sample) -> Tensor:
        """`(layers, heads, d_model)` means over images."""
        total = sum(self.writes(part["image"].to(self.clip.device)).sum(0).cpu() for part in sample.batches())
        assert isinstance(total, Tensor)
        return total / len(sample.labels)

    def ranked(self, sample: Sample, head: Head, groups: Groups) -> list[Place]:
        """Heads by how much their direct writing for the class depends on the attribute, the kind being the same."""
        rows = []
        for part in sample.batches(32):
            images = part["image"].to(self.clip.device)
            gradient = self._gradient(images, part["label"], head)
            rows.append(torch.einsum("nlhd,nd->nlh", self.writes(images), gradient).cpu())
        found = torch.cat(rows)
        score = torch.zeros(found.shape[1:])
        for kind in range(groups.n // groups.attributes):
            first = kind * groups.attributes
            means = torch.stack([found[sample.groups == first + a].mean(0) for a in range(groups.attributes)])
            score += means.amax(0) - means.amin(0)
        order = score.flatten().argsort(descending=True).tolist()
        return [divmod(i, self.n) for i in order]

    def _gradient(self, images: Tensor, labels: Tensor, head: Head) -> Tensor:
        """`(images, d_model)` of the class's margin by the last [CLS] residual."""
        leaf: list[Tensor] = []

        def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
            y = compute()
            leaf.append(torch.zeros_like(y).requires_grad_())
            return y + leaf[0]

        last = [self.clip.n_layers - 1]
        with torch.inference_mode(False), torch.enable_grad(), self.clip.override("resid_post", put, last):
            margin = head.margin(self.clip.encode_image(images.clone(), grad=True), labels)
            return torch.autograd.grad(margin.sum(), leaf)[0][:, 0].float()

    @contextmanager
    def ablated(self, places: Sequence[Place], means: Tensor) -> Iterator[None]:
        """While active, what some heads write straight into the last [CLS] residual is its mean."""
        by_block: dict[int, list[int]] = {}
        for block, head in places:
            by_block.setdefault(block, []).append(head)
        changes: list[Tensor] = []

        def see(block: int, z: Tensor) -> None:
            some = by_block[block]
            changes.append((means[block, some].to(z.device) - self._split(block, z[:, 0].float())[:, some]).sum(1))

        def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
            y = compute().clone()
            y[:, 0] += torch.stack(changes).sum(0).to(y.dtype)
            changes.clear()
            return y

        with ExitStack() as stack:
            if by_block:
                stack.enter_context(self.clip.watch(see, sorted(by_block), "attn_z"))
                stack.enter_context(self.clip.override("resid_post", put, [self.clip.n_layers - 1]))
            yield

"""Zero-shot classification: accuracies, and how far the replaced model's class probabilities move."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.metrics.base import ExactMetric, check_same, check_shape, metric_device

LOGIT_SCALE = 100.0


def ranks_of(cosines: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Int[Tensor, " images"]:
    """Place of the right class among the logits, 0 for the top, -1 without a label; `(images,)` int64.

    Equal logits are ranked by class number, as `numpy.argmax` does, so that a constant prediction earns nothing; a row
    with a NaN puts the right class last.
    """
    own = cosines.gather(1, labels.clamp(min=0)[:, None])
    before = torch.arange(cosines.shape[1], device=labels.device) < labels[:, None]
    rank = ((cosines > own) | ((cosines == own) & before)).sum(1)
    rank = rank.masked_fill(cosines.isnan().any(1), cosines.shape[1])
    return rank.masked_fill(labels < 0, -1)


def divergences(
    original: Float[Tensor, "images classes"], replaced: Float[Tensor, "images classes"], scale: float = LOGIT_SCALE
) -> Float[Tensor, " images"]:
    """`KL(softmax(scale * original) || softmax(scale * replaced))` of each image in nats, `(images,)` float64."""
    wide = (cosines.to(metric_device(cosines.device)).double() for cosines in (original, replaced))
    p, q = ((scale * cosines).log_softmax(-1) for cosines in wide)
    return (p.exp() * (p - q)).sum(-1)


class ZeroShotAccuracy(ExactMetric):
    """Top-1, top-5 and mean per-class recall of class logits; images without a label (-1) do not count.

    Equal logits are ranked by class number, as `numpy.argmax` does, so that a constant prediction earns nothing; a row
    with a NaN is wrong.

    Args:
        n_classes: classes C.
    """

    higher_is_better = True
    top1: Tensor
    top5: Tensor
    count: Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        for name in ("top1", "top5", "count"):
            self.add_state(name, torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> None:
        """Take in one batch.

        Args:
            logits: `(images, C)`; any positive scale, since only their order counts.
            labels: `(images,)` integers in `0..C-1`, or -1 for none.

        Raises:
            UserError: if a shape does not fit or a label is outside the classes.
        """
        check_shape(self, "logits", logits, expected=(len(labels), self.n_classes))
        device = self.count.device
        known = labels != -1
        logits, labels = logits[known].to(device), labels[known].to(device)
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= self.n_classes):
            raise UserError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, but there are {self.n_classes} class "
                f"names (0..{self.n_classes - 1}; -1 for none): check classnames against the labels in the shards"
            )
        rank = ranks_of(logits, labels)
        self.count += torch.bincount(labels, minlength=self.n_classes)
        self.top1 += torch.bincount(labels[rank < 1], minlength=self.n_classes)
        self.top5 += torch.bincount(labels[rank < min(5, self.n_classes)], minlength=self.n_classes)

    def compute(self) -> dict[str, Tensor]:
        """Scalars in float64: `top1`, `top5` and `per_class_recall` (mean of the top-1 recall over the classes that
        occur), each in 0..1 and NaN without labels, and `images`, the number of labelled images.
        """
        images = self.count.sum().double()
        occurs = self.count > 0
        return {
            "top1": self.top1.sum() / images,
            "top5": self.top5.sum() / images,
            "per_class_recall": (self.top1[occurs].double() / self.count[occurs]).mean(),
            "images": images,
        }


class LogitKL(ExactMetric):
    """`KL(softmax(original logits) || softmax(replaced logits))`, mean over images, in nats.

    It takes cosines and multiplies by CLIP's 100 itself: with unscaled cosines every softmax is nearly uniform, and any
    replacement, even a broken one, seems to keep "100 %" of the model.

    Args:
        scale: the factor from cosines to logits.
    """

    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, scale: float = LOGIT_SCALE) -> None:
        super().__init__()
        self.scale = scale
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, original: Float[Tensor, "images classes"], replaced: Float[Tensor, "images classes"]) -> None:
        """Take in one batch.

        Args:
            original: `(images, C)` cosines of the image embeddings with the class embeddings, untouched model.
            replaced: the same for the replaced model.

        Raises:
            UserError: if the shapes differ, or if these are logits rather than cosines.
        """
        check_shape(self, "original", original, expected=(None, None))
        check_same(self, ("original", "replaced"), original, replaced)
        for name, cosines in (("original", original), ("replaced", replaced)):
            if cosines.numel() and (largest := float(cosines.abs().max())) > 1.01:
                raise UserError(
                    f"LogitKL: {name} holds {largest:.4g}, but cosines lie in -1..1; "
                    f"give unit embeddings @ head: the factor {self.scale:g} is applied here"
                )
        self.total += divergences(original, replaced, self.scale).sum().to(self.total.device)
        self.count += len(original)

    def compute(self) -> Float[Tensor, ""]:
        """The mean divergence, a float64 scalar; NaN without images."""
        return self.total / self.count

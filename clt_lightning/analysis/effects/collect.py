"""Total effects of every feature over a split, summed in bounded memory and mergeable over processes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.analysis.effects.direct import direct_effects, read_out, read_out_scale
from clt_lightning.analysis.effects.live import per_image, total_effects
from clt_lightning.analysis.tower import Observation, reads_cls_only
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.arrays import Arrays
from clt_lightning.metrics.base import ExactMetric
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: What is asked of every image: its predicted class minus the mean of all classes, and minus the runner-up
TARGETS = ("class", "margin")
#: Classes kept at either end of a feature's direct effect
ENDS = 8


class Effects(Arrays):
    """What features do to the logits; arrays as documented in docs/results-schema.md, `effects.npz` of `features/`."""

    FILE = "effects.npz"


def image_directions(
    head: Float[Tensor, "embed_dim classes"], embeddings: Float[Tensor, "images embed_dim"]
) -> tuple[Float[Tensor, "2 images embed_dim"], Int[Tensor, " images"]]:
    """What is asked of each image, and the class that it was predicted as.

    Args:
        head: `(embed_dim, classes)`.
        embeddings: `(images, embed_dim)`.

    Returns:
        `(2, images, embed_dim)` in the order of `TARGETS`, and `(images,)`.
    """
    first = (embeddings.float() @ head.float()).topk(min(2, head.shape[1]), 1).indices
    own = head.T[first[:, 0]]
    return torch.stack([own - head.mean(1), own - head.T[first[:, -1]]]), first[:, 0]


class EffectCollector(ExactMetric):
    """Sums every feature's total effects over images; memory `8 L F (2 x targets + 1 + classes)` bytes.

    Args:
        clip: the backbone.
        clt: the transcoder.
        head: `(embed_dim, classes)`.
    """

    total: Tensor
    squares: Tensor
    images: Tensor
    by_class: Tensor
    predicted: Tensor
    scale: Tensor

    def __init__(self, clip: FrozenCLIP, clt: CrossLayerTranscoder, head: Float[Tensor, "embed_dim classes"]) -> None:
        super().__init__()
        object.__setattr__(self, "_clip", clip)
        object.__setattr__(self, "_clt", clt)
        object.__setattr__(self, "_head", head.detach().float().to(clip.device))
        L, F, C = clt.n_layers, clt.n_features, head.shape[1]
        shapes = {
            "total": (len(TARGETS), L, F),
            "squares": (len(TARGETS), L, F),
            "images": (L, F),
            "by_class": (L, F, C),
            "predicted": (C,),
            "scale": (1,),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, seen: Observation, codes: Codes) -> None:
        """Take in one batch: the untouched model on it, and its codes."""
        clip: FrozenCLIP = self.__dict__["_clip"]
        clt: CrossLayerTranscoder = self.__dict__["_clt"]
        directions, predicted = image_directions(self.__dict__["_head"], seen.embeddings)
        device = self.total.device
        self.predicted += torch.bincount(predicted, minlength=len(self.predicted)).to(device)
        if reads_cls_only(clip):
            self.scale += read_out_scale(clip, seen)[0].sum().to(device)
        for layer, effects in enumerate(total_effects(clip, clt, seen, codes, directions)):
            image, feature, sums = (part.to(device) for part in per_image(codes, layer, effects, seen.n_images))
            self.total[:, layer].index_add_(1, feature, sums)
            self.squares[:, layer].index_add_(1, feature, sums.square())
            self.images[layer] += torch.bincount(feature, minlength=clt.n_features)
            self.by_class[layer].index_put_((feature, predicted.to(device)[image]), sums[0], accumulate=True)

    def compute(self) -> dict[str, Tensor]:
        """The plain sums of all processes."""
        return {name: getattr(self, name) for name in self._defaults}

    def result(self) -> Effects:
        """Effects of all features, from all processes, all of which must call this."""
        clip: FrozenCLIP = self.__dict__["_clip"]
        clt: CrossLayerTranscoder = self.__dict__["_clt"]
        # torchmetrics squeezes sums of one element
        sums = {name: value.reshape(getattr(self, name).shape) for name, value in self.compute().items()}
        images = sums["images"]
        mean = sums["total"] / images
        spread = (sums["squares"] / images - mean.square()).clamp(min=0).sqrt()
        arrays: dict[str, np.ndarray] = {
            "images": images.cpu().numpy().astype(np.int32),
            "predicted": sums["predicted"].cpu().numpy().astype(np.int32),
            "by_class": sums["by_class"].float().cpu().numpy(),
        }
        for index, name in enumerate(TARGETS):
            arrays[f"{name}_mean"] = mean[index].float().cpu().numpy()
            arrays[f"{name}_std"] = spread[index].float().cpu().numpy()
            arrays[f"{name}_sum"] = sums["total"][index].float().cpu().numpy()
            arrays[f"{name}_strength"] = sums["squares"][index].sqrt().float().cpu().numpy()
        if reads_cls_only(clip):
            scale = float(sums["scale"]) / max(float(sums["predicted"].sum()), 1.0)
            arrays |= direct_arrays(clt, read_out(clip, self.__dict__["_head"]) * scale)
        return Effects(arrays)


def direct_arrays(clt: CrossLayerTranscoder, directions: Tensor) -> dict[str, np.ndarray]:
    """The largest and the smallest direct effects of every feature, and through which layer they go."""
    ends = min(ENDS, len(directions))
    top = torch.zeros(clt.n_layers, clt.n_features, 2 * ends)
    index = torch.zeros(clt.n_layers, clt.n_features, 2 * ends, dtype=torch.int32)
    by_target = torch.zeros(clt.n_layers, clt.n_features, clt.n_layers)
    for layer in range(clt.n_layers):
        effects, spread = direct_effects(clt, layer, directions)
        by_target[layer] = spread.cpu()
        for place, largest in ((slice(0, ends), True), (slice(ends, 2 * ends), False)):
            values, classes = effects.topk(ends, 1, largest=largest)
            top[layer, :, place], index[layer, :, place] = values.float().cpu(), classes.int().cpu()
    return {
        "direct": top.numpy(),
        "direct_class": index.numpy(),
        "direct_by_target": by_target.numpy(),
    }

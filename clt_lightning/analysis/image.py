"""One image explained: the strongest features of each layer, and its class logit layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis import notebook
from clt_lightning.analysis.decomposition import Decomposition, decompose
from clt_lightning.analysis.tower import at_all_mlps, observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit, replaced
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.codes import Codes


@dataclass(frozen=True)
class ActiveFeature:
    """A feature on one image.

    Attributes:
        layer: its layer.
        feature: its number in the layer.
        value: its code of largest magnitude.
        position: where that is; 0 is [CLS].
        mean: its mean code over all positions.
        map: `(P,)` its codes at every position: exactly `encode`'s.
    """

    layer: int
    feature: int
    value: float
    position: int
    mean: float
    map: Float[Tensor, " positions"] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "feature": self.feature,
            "value": self.value,
            "position": self.position,
            "mean": self.mean,
            "map": self.map.tolist(),
        }


@dataclass(frozen=True)
class ClassScore:
    """A class's logits and probabilities under the untouched and the replaced model."""

    index: int
    name: str
    original: float
    replaced: float
    p_original: float
    p_replaced: float


@dataclass(frozen=True)
class ImageExplanation:
    """What a transcoder says of one image.

    Attributes:
        class_index: the class whose logit is decomposed.
        classname: its name.
        classes: the top classes of either model, by the original's logit.
        top_features: for each layer its strongest features, strongest first (in the untouched model).
        original: decomposition of the untouched model's logit (with the error terms).
        replaced: decomposition of the logit with all MLPs replaced, cascaded.
        grid: patches as (rows, columns).
        pixels: `(size, size, 3)` uint8, the image as the backbone sees it.
        n_prefix: tokens before the patches.
    """

    class_index: int
    classname: str
    classes: list[ClassScore]
    top_features: list[list[ActiveFeature]] = field(repr=False)
    original: Decomposition = field(repr=False)
    replaced: Decomposition = field(repr=False)
    grid: tuple[int, int]
    pixels: np.ndarray = field(repr=False)
    n_prefix: int = 1

    def _repr_html_(self) -> str:
        classes = [
            [
                c.name,
                *(f"{v:.2f}" for v in (c.original, c.replaced)),
                *(f"{v:.1%}" for v in (c.p_original, c.p_replaced)),
            ]
            for c in self.classes
        ]
        d = self.original
        sums = {name: float(getattr(d, name).sum()) for name in ("attention", "features", "skip", "bias", "error")}
        kinds = {"embedding": d.embedding, **sums, "norm bias": d.norm_bias}
        adds = [[name, f"{value:+.2f}"] for name, value in kinds.items()]
        shown = [notebook.picture(self.pixels, None, self.grid, self.classname)]
        for layer, features in enumerate(self.top_features):
            shown += [
                notebook.picture(
                    self.pixels, f.map, self.grid, f"layer {layer}, {f.feature}: {f.value:.2f}", 96, self.n_prefix
                )
                for f in features[:4]
            ]
        head = ["class", "logit", "replaced", "probability", "replaced"]
        return (
            notebook.table(head, classes)
            + notebook.table(["part", "adds"], adds, f"logit of {self.classname}")
            + f"<div>{''.join(shown)}</div>"
        )

    def to_json(self, key: str | None = None, label: int | None = None) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "key": key,
            "label": label,
            "class": self.class_index,
            "classname": self.classname,
            "layers": len(self.top_features),
            "grid": list(self.grid),
            "classes": [
                {
                    "class": c.index,
                    "name": c.name,
                    "original": c.original,
                    "replaced": c.replaced,
                    "p_original": c.p_original,
                    "p_replaced": c.p_replaced,
                }
                for c in self.classes
            ],
            "top_features": [[f.to_json() for f in layer] for layer in self.top_features],
            "replaced": self.replaced.to_json(),
            "original": self.original.to_json(),
        }


@torch.no_grad()
def explain_image(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    image: Float[Tensor, "3 size size"],
    head: Float[Tensor, "embed_dim classes"],
    classnames: Sequence[str],
    class_index: int | None = None,
    n_features: int = 8,
    n_classes: int = 5,
) -> ImageExplanation:
    """Explain one image.

    Args:
        clip: the backbone.
        clt: the transcoder.
        image: `(3, size, size)`, preprocessed.
        head: `(embed_dim, classes)` from `clip.zero_shot_head`.
        classnames: names of the head's columns.
        class_index: the class whose logit is decomposed; None takes the untouched model's top one.
        n_features: features per layer.
        n_classes: top classes shown of either model.

    Raises:
        UserError: shapes or the class do not fit, or a backbone that does not read its embedding from [CLS].
    """
    if not at_all_mlps(clip, clt):
        raise UserError(
            f"a logit is split up where the transcoder stands in the place of all MLPs: this one rebuilds "
            f"{clt.sites.write} at blocks {list(check_fit(clip, clt))}"
        )
    if image.ndim != 3:
        raise UserError(f"explain_image takes one image (3, size, size), got {tuple(image.shape)}")
    if head.shape[1] != len(classnames):
        raise UserError(f"the head has {head.shape[1]} columns for {len(classnames)} class names")
    if class_index is not None and not 0 <= class_index < len(classnames):
        raise UserError(f"class_index {class_index} is outside the {len(classnames)} classes")
    images = image[None].to(clip.device)
    head = head.to(clip.device)
    seen = observe(clip, images, clt=clt)
    codes = clt.encode(seen.x)
    with replaced(clip, clt) as trace:
        cascade = observe(clip, images, clt=clt)
        cascade_codes = _joined(trace.codes, clt.n_layers)
        added = torch.stack([trace.y_hat[layer][0] for layer in range(clt.n_layers)])
    chosen = int((seen.embeddings @ head)[0].argmax()) if class_index is None else class_index
    text = head[:, chosen]
    positions = clip.n_positions
    true_y = seen.y.unflatten(1, (1, positions))[:, 0, 0]
    return ImageExplanation(
        chosen,
        classnames[chosen],
        _class_scores(clip, seen.embeddings @ head, cascade.embeddings @ head, classnames, n_classes),
        [strongest(codes, layer, n_features) for layer in range(clt.n_layers)],
        decompose(clip, clt, seen, codes, true_y, text, replaced=False),
        decompose(clip, clt, cascade, cascade_codes, added.to(clip.dtype), text, replaced=True),
        clip.grid,
        to_pixels(images[0], clip.mean, clip.std),
        clip.n_prefix,
    )


def strongest(codes: Codes, layer: int, n: int) -> list[ActiveFeature]:
    """The features of a layer with the largest codes on one image, strongest first.

    Args:
        codes: of one image, all its tokens.
        layer: which layer.
        n: at most how many.
    """
    dense = codes.dense_layer(layer).detach()
    magnitude, position = dense.abs().max(0)
    order = magnitude.argsort(descending=True, stable=True)[:n]
    return [
        ActiveFeature(
            layer, f, float(dense[position[f], f]), int(position[f]), float(dense[:, f].mean()), dense[:, f].cpu()
        )
        for f in order.tolist()
        if magnitude[f] > 0
    ]


def _joined(by_layer: dict[int, Codes], n_layers: int) -> Codes:
    layers = [by_layer[layer].layer(0) for layer in range(n_layers)]
    return Codes([pairs for pairs, _ in layers], [values for _, values in layers])


def _class_scores(
    clip: FrozenCLIP, original: Tensor, changed: Tensor, classnames: Sequence[str], n: int
) -> list[ClassScore]:
    logits = [clip.logit_scale * cosines[0].double() for cosines in (original, changed)]
    p = [values.softmax(0) for values in logits]
    n = min(n, len(classnames))
    shown = set(logits[0].topk(n).indices.tolist()) | set(logits[1].topk(n).indices.tolist())
    return [
        ClassScore(c, classnames[c], float(logits[0][c]), float(logits[1][c]), float(p[0][c]), float(p[1][c]))
        for c in sorted(shown, key=lambda c: -float(logits[0][c]))
    ]

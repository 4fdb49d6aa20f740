"""What an embedding shares with some features' codes, taken out of it: the edit of debiasing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.debias.predictor import within
from clt_lightning.backbone import Backbone
from clt_lightning.interventions.mean_ablation import Feature
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.columns import columns


@dataclass(frozen=True)
class Regression:
    """What unit embeddings share with a few weighted sums of features' codes, from images of one class each time.

    A sum of codes is to tell the cue: with it goes whatever the cue does to the embedding, on all of its ways.

    Attributes:
        features: in the columns' order.
        mean: `(features,)` mean codes over training images.
        weights: `(features, sums)` of the codes in each sum.
        slopes: `(sums, embed_dim)` by how much embeddings move with one more of a sum.
    """

    features: tuple[Feature, ...]
    mean: Tensor
    weights: Tensor
    slopes: Tensor

    @classmethod
    def fit(
        cls,
        features: Sequence[Feature],
        weights: Tensor,
        mean: Tensor,
        codes: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
    ) -> Regression:
        """From images in which the cue does not go with the class (or groups are balanced).

        Args:
            features: in the columns' order.
            weights: `(features, sums)`.
            mean: `(features,)` mean codes over training images.
            codes: `(n, features)` of these images, means over positions.
            embeddings: `(n, embed_dim)` unit.
            labels: `(n,)` classes; all the same where none are known.
            weight: `(n,)` how much each image counts; None: all the same.
        """
        sums, rows = within(codes, labels, weight) @ weights, within(embeddings, labels, weight)
        counted = sums if weight is None else weight[:, None] * sums
        slopes = torch.linalg.pinv(counted.T @ sums, hermitian=True) @ (counted.T @ rows)
        return cls(tuple(features), mean, weights, slopes)


@contextmanager
def watched_codes(
    clip: Backbone, clt: CrossLayerTranscoder, features: Sequence[Feature]
) -> Iterator[Callable[[], Tensor]]:
    """While active, gives `(images, features)` mean codes over positions of the batch that has just passed.

    Args:
        clip: the backbone.
        clt: the transcoder.
        features: (layer, feature) each.
    """
    blocks = check_fit(clip, clt)
    places: dict[int, list[int]] = {}
    for i, (layer, _) in enumerate(features):
        places.setdefault(layer, []).append(i)
    seen: dict[int, Tensor] = {}

    def see(block: int, x: Tensor) -> None:
        layer = blocks.index(block)
        some = columns(clt.encode_layer(x.flatten(0, 1), layer), [features[i][1] for i in places[layer]])
        seen[layer] = some.detach().unflatten(0, (len(x), -1)).mean(1).float()

    def read() -> Tensor:
        found = next(iter(seen.values())).new_zeros(len(next(iter(seen.values()))), len(features))
        for layer, some in places.items():
            found[:, some] = seen[layer]
        return found

    with ExitStack() as stack:
        if places:
            stack.enter_context(clip.watch(see, sorted(blocks[layer] for layer in places), str(clt.sites.read)))
        yield read


@contextmanager
def regressed_out(clip: Backbone, clt: CrossLayerTranscoder, fit: Regression) -> Iterator[None]:
    """While active, what unit embeddings share with sums of codes is taken out of them, for every image.

    `e - ((codes - mean codes) @ weights) @ slopes`: the embedding as it would be, to first order, with the sums
    at their mean. Codes are read from the running model, whose other computation is not changed.

    Args:
        clip: the backbone.
        clt: the transcoder.
        fit: without features nothing is changed.
    """
    if not fit.features:
        yield
        return
    mean, weights, slopes = (part.to(clip.device) for part in (fit.mean, fit.weights, fit.slopes))
    with watched_codes(clip, clt, fit.features) as read:

        def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
            unit = F.normalize(compute().float(), dim=-1)
            return (unit - (read() - mean) @ weights @ slopes).to(x.dtype)

        with clip.override("final", put):
            yield

"""What an embedding shares with some features' codes, taken out of it: the edit of debiasing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.debias.ablation import Feature
from clt_lightning.analysis.debias.predictor import within
from clt_lightning.analysis.steering import columns
from clt_lightning.backbone import Backbone
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder

#: Of the codes' variance: what keeps the regression on codes that go together from running away
RIDGE = 0.01


@dataclass(frozen=True)
class Regression:
    """Unit embeddings' regression on features' codes over training images, the class being the same.

    Attributes:
        features: in the columns' order.
        mean: `(features,)` of the codes over training images.
        scale: `(features,)` their standard deviation within a class.
        codes: `(features, features)` mean products of the scaled codes within a class.
        shared: `(features, embed_dim)` mean products of scaled codes and embeddings within a class.
    """

    features: tuple[Feature, ...]
    mean: Tensor
    scale: Tensor
    codes: Tensor
    shared: Tensor

    @classmethod
    def fit(cls, features: Sequence[Feature], codes: Tensor, embeddings: Tensor, labels: Tensor) -> Regression:
        """From training images.

        Args:
            features: in the columns' order.
            codes: `(n, features)` mean codes over an image's positions.
            embeddings: `(n, embed_dim)` unit.
            labels: `(n,)`.
        """
        z, e = within(codes, labels), within(embeddings, labels)
        scale = z.square().mean(0).sqrt()
        z = torch.where(scale > 1e-9, z / scale.clamp(min=1e-9), torch.zeros(()))
        return cls(tuple(features), codes.mean(0), scale, z.T @ z / len(z), z.T @ e / len(z))

    def coefficients(self, n: int) -> Tensor:
        """`(n, embed_dim)`: by how much the embedding moves with the codes of the first n features, units of codes."""
        slopes = torch.linalg.solve(self.codes[:n, :n] + RIDGE * torch.eye(n), self.shared[:n])
        scale = self.scale[:n, None]
        return torch.where(scale > 1e-9, slopes / scale.clamp(min=1e-9), torch.zeros(()))


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


@torch.no_grad()
def codes_of(
    clip: Backbone, clt: CrossLayerTranscoder, features: Sequence[Feature], batches: Iterable[dict[str, Any]]
) -> Tensor:
    """`(n, features)`: mean codes over positions of the images of batches that have a label (others are left out)."""
    rows = []
    with watched_codes(clip, clt, features) as read:
        for batch in batches:
            images = batch["image"][batch["label"] >= 0]
            if len(images):
                clip.encode_image(images.to(clip.device))
                rows.append(read().cpu())
    return torch.cat(rows)


@contextmanager
def regressed_out(clip: Backbone, clt: CrossLayerTranscoder, fit: Regression, n: int) -> Iterator[None]:
    """While active, unit embeddings are what they would be, to first order, with features' codes at their mean.

    From the embedding is taken `(codes - mean codes) @ coefficients`: what goes along with these codes in training
    images of one class, whatever way it takes into the embedding. No other computation is changed.

    Args:
        clip: the backbone.
        clt: the transcoder.
        fit: of training images.
        n: the first so many features; 0 changes nothing.
    """
    if n == 0:
        yield
        return
    slopes, mean = fit.coefficients(n).to(clip.device), fit.mean[:n].to(clip.device)
    with watched_codes(clip, clt, fit.features[:n]) as read:

        def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
            unit = F.normalize(compute().float(), dim=-1)
            return (unit - (read() - mean) @ slopes).to(x.dtype)

        with clip.override("final", put):
            yield

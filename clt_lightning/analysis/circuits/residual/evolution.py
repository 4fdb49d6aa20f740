"""How features change from layer to layer: who feeds whom, who looks like whom, where they fire, how smooth they are.

Of a transcoder of any topology, but for the edges, which are the residual replacement model's. Plain data for pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.faithful.dictionary import Features, observe_units
from clt_lightning.analysis.circuits.residual.relevance import relevance, residual_model
from clt_lightning.analysis.spatial import moran
from clt_lightning.analysis.target import Target
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.transcoder import CrossLayerTranscoder

#: Features of a layer compared at once with all of the layer before
_CHUNK = 1024


@dataclass(frozen=True)
class Matches:
    """For each feature of a layer, its nearest ones in the layer before.

    Attributes:
        feature: `(F, n)` int64, nearest first; -1 where there is none.
        value: `(F, n)`: how near; NaN where there is none.
    """

    feature: Tensor
    value: Tensor

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"feature": self.feature.tolist(), "value": _rounded(self.value)}


@dataclass(frozen=True)
class Evolution:
    """Features over the layers.

    Attributes:
        blocks: the backbone's block of each layer.
        n_images: images behind the numbers.
        frequency: `(layers, F)`: the share of tokens at which each fires.
        selectivity: `(layers, F)` bits that a position tells about whether the feature fires there, less what chance
            would (Miller and Madow's term); NaN for features that never fire.
        position_share: the same over the entropy of firing: 1 if the position says all.
        moran: `(layers, F)` Moran's I of the feature's map over the patches (queen's neighbours), mean over images in
            which at least `MORAN_ACTIVE` patches and at most `MORAN_SHARE` of them fire; NaN where there is none.
            Without any order it is about -1 / (patches - 1).
        moran_images: `(layers, F)`: how many those are.
        weights: by pair of layers, encoder of the later by decoder of the earlier: the cosine.
        profiles: by pair of layers, Spearman's correlation of what the features are over images (summed codes).
        edges: by pair of layers, the strongest edges, summed over images (`summed_edges`); None where there are none.
    """

    blocks: tuple[int, ...]
    n_images: int
    frequency: Tensor
    selectivity: Tensor
    position_share: Tensor
    moran: Tensor
    moran_images: Tensor
    weights: list[Matches] = field(repr=False)
    profiles: list[Matches] = field(repr=False)
    edges: list[Matches] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values: by layer, each feature's numbers and the medians; by pair of layers, the matches."""
        layers = []
        for layer, block in enumerate(self.blocks):
            numbers = {
                name: getattr(self, name)[layer]
                for name in ("frequency", "selectivity", "position_share", "moran", "moran_images")
            }
            alive = self.frequency[layer] > 0
            layers.append(
                {
                    "block": block,
                    "alive": int(alive.sum()),
                    "median": {name: _number(values[alive].double().nanmedian()) for name, values in numbers.items()},
                    **{name: _rounded(values) for name, values in numbers.items()},
                }
            )
        pairs = [
            {
                "from": self.blocks[i],
                "to": self.blocks[i + 1],
                "weights": self.weights[i].to_json(),
                "profiles": self.profiles[i].to_json(),
                "edges": None if self.edges is None else self.edges[i].to_json(),
            }
            for i in range(len(self.blocks) - 1)
        ]
        return {"images": self.n_images, "layers": layers, "pairs": pairs}


@torch.no_grad()
def evolution(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    batches: Iterable[dict[str, Any]],
    *,
    matches: int = 3,
    images: int | None = None,
    progress: bool = False,
) -> Evolution:
    """Follow features over the layers, on images.

    Args:
        clip: the backbone.
        clt: the transcoder.
        batches: with `image (images, 3, size, size)`; some hundred images will do.
        matches: nearest features kept of each.
        images: how many there are, for the progress line.
        progress: say how far it is.

    Raises:
        UserError: fewer than 2 images, or a transcoder at the site after the last block.
    """
    features = Features(clip, clt)
    sums = _Sums(clip, len(features.blocks), clt.n_features)
    with Progress("evolution", images, "images", show=progress) as bar:
        for batch in batches:
            seen = observe_units(clip, features, batch["image"].to(clip.device))
            sums.add(seen.codes, seen.n_images)
            bar.update(seen.n_images)
    if sums.n < 2:
        raise UserError("features are followed over at least 2 images")
    pairs = range(len(features.blocks) - 1)
    profiles = [torch.cat(part).T for part in sums.profiles]  # (F, images) each
    selectivity, share = sums.selectivity()
    count = sums.moran_images.clamp(min=1)
    return Evolution(
        features.blocks,
        sums.n,
        (sums.fired.sum(1) / (sums.n * clip.n_positions)).float(),
        selectivity,
        share,
        torch.where(sums.moran_images > 0, sums.moran / count, float("nan")).float(),
        sums.moran_images.long(),
        [weight_matches(clt, layer, matches) for layer in pairs],
        [nearest(_ranked(profiles[layer]), _ranked(profiles[layer + 1]), matches) for layer in pairs],
    )


class _Sums:
    """What is added up over images."""

    def __init__(self, clip: Backbone, n_layers: int, n_features: int) -> None:
        self.P, self.grid, self.patches = clip.n_positions, clip.grid, clip.tokens.span("patch")
        self.n = 0
        self.fired = torch.zeros(n_layers, self.P, n_features, dtype=torch.float64)
        self.moran = torch.zeros(n_layers, n_features, dtype=torch.float64)
        self.moran_images = torch.zeros(n_layers, n_features, dtype=torch.float64)
        self.profiles: list[list[Tensor]] = [[] for _ in range(n_layers)]

    def add(self, codes: list[Tensor], n_images: int) -> None:
        for layer, values in enumerate(codes):
            by_image = values.unflatten(0, (n_images, self.P))
            self.fired[layer] += (by_image != 0).sum(0).cpu()
            self.profiles[layer].append(by_image.sum(1).cpu())
            maps = by_image[:, self.patches].unflatten(1, self.grid)
            found = moran(maps)
            some = ~found.isnan()
            self.moran[layer] += torch.where(some, found, 0.0).sum(0).double().cpu()
            self.moran_images[layer] += some.sum(0).cpu()
        self.n += n_images

    def selectivity(self) -> tuple[Tensor, Tensor]:
        """Mutual information of position and firing in bits, and its share of the entropy of firing."""
        rate = self.fired / self.n  # (layers, positions, F)
        whole = _entropy(rate.mean(1))
        found = whole - _entropy(rate).mean(1)
        # a table of two columns and P rows looks dependent by chance: (P - 1) / (2 N ln 2) bits of it
        chance = (self.P - 1) / (2 * self.n * self.P) / torch.log(torch.tensor(2.0)).item()
        bits = torch.where(whole > 0, (found - chance).clamp(min=0), float("nan"))
        return bits.float(), (bits / whole.clamp(min=1e-12)).clamp(max=1).float()


def _entropy(p: Tensor) -> Tensor:
    result: Tensor = (
        -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0)).item()
    )
    return result


def weight_matches(clt: CrossLayerTranscoder, layer: int, n: int) -> Matches:
    """Cosines of encoders of layer + 1 with what features of the layer before write there (or into their own layer).

    A per-layer transcoder's, and an autoencoder's, features write into their own layer; what they write stays in the
    stream. Where encoders do not see a token's mean, it is taken off.
    """
    target = layer + 1 if clt.writes(layer, layer + 1) else layer
    written = clt.W_dec[layer].detach()[:, target - layer].float()
    read = clt.W_enc[layer + 1].detach().float()
    if clt.normalization == "token" or clt.sites.read == "mlp_in":
        written, read = (part - part.mean(1, keepdim=True) for part in (written, read))
    return nearest(F.normalize(written, dim=1), F.normalize(read, dim=1), n)


def nearest(before: Tensor, after: Tensor, n: int) -> Matches:
    """Of each row of `after (F, d)`, the rows of `before (F, d)` with the largest products; zero rows match nobody."""
    n = min(n, len(before))
    features, values = [], []
    empty = ~before.any(1)
    for some in after.split(_CHUNK):
        found = (some @ before.T).masked_fill(empty, float("-inf"))
        found[~some.any(1)] = float("-inf")
        top = found.topk(n, dim=1)
        none = top.values == float("-inf")
        features.append(torch.where(none, -1, top.indices))
        values.append(torch.where(none, float("nan"), top.values))
    return Matches(torch.cat(features).cpu(), torch.cat(values).cpu())


def edge_matches(total: list[Tensor], n: int) -> list[Matches]:
    """From summed edges `(F, F + 1)` of each pair of layers (readers by sources, the error last): the strongest.

    Only positive ones count.
    """
    found = []
    for weight in total:
        top = weight[:, :-1].topk(min(n, weight.shape[1] - 1), dim=1)
        none = top.values <= 0
        found.append(Matches(torch.where(none, -1, top.indices), torch.where(none, float("nan"), top.values)))
    return found


@torch.no_grad()
def summed_edges(
    clip: Any,
    sae: CrossLayerTranscoder,
    images: Iterable[tuple[Tensor, int]],
    baseline: Baseline,
    head: Tensor,
    classnames: Sequence[str],
    n: int | None = None,
    *,
    progress: bool = False,
) -> list[Tensor]:
    """Edges of the residual replacement model, summed over images, each for its own class (its most probable one, -1).

    Args:
        clip: the backbone.
        sae: autoencoders at `resid_post`.
        images: `(3, size, size)` and the class, or -1.
        baseline: of their features.
        head: `(embed_dim, classes)`.
        classnames: the classes' names.
        n: how many images there are, for the progress line.
        progress: say how far it is.

    Returns:
        by pair of layers `(F, F + 1)` on the CPU: readers by sources, the error last.
    """
    n_features, pairs = sae.n_features, sae.n_layers - 1
    total = [torch.zeros(n_features, n_features + 1) for _ in range(pairs)]
    with Progress("edges", n, "images", show=progress) as bar:
        for image, label in images:
            own = label if label >= 0 else int((clip.encode_image(image)[0] @ head).argmax())
            target = Target.centred(head, classnames, own, clip.logit_scale)
            found = relevance(residual_model(clip, sae, image), target, baseline)
            for layer, part in enumerate(found.edges):
                total[layer].index_add_(0, part.readers, part.weight.float())
            bar.update()
    return total


def _ranked(profiles: Tensor) -> Tensor:
    """Ranks of each row, ties at their mean, centred and of length 1; 0 for a row of equal numbers."""
    order = profiles.argsort(dim=1, stable=True)
    ranks = torch.empty_like(profiles, dtype=torch.float64)
    steps = torch.arange(profiles.shape[1], dtype=torch.float64).expand_as(profiles)
    ranks.scatter_(1, order, steps)
    for row, values in enumerate(profiles):  # ties: zeros, mostly
        _, owner, count = values.unique(return_inverse=True, return_counts=True)
        if len(count) < len(values):
            mean = torch.zeros(len(count), dtype=torch.float64).index_add_(0, owner, ranks[row]) / count
            ranks[row] = mean[owner]
    centred = ranks - ranks.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-9, centred / length.clamp(min=1e-12), 0.0).float()


def _number(value: Any) -> float | None:
    number = float(value)
    return None if number != number else round(number, 6)


def _rounded(values: Tensor) -> list[Any]:
    found: list[Any] = values.tolist()
    return [[_number(v) for v in row] if isinstance(row, list) else _number(row) for row in found]

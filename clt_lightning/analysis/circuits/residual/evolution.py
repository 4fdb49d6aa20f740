"""How features change from layer to layer: who feeds whom, who looks like whom, where they fire, how smooth they are.

Of a transcoder of any topology, but for the edges, which are the residual replacement model's. Plain data for pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.faithful.dictionary import Features, observe_units
from clt_lightning.analysis.circuits.residual.matches import (
    Matches,
    agreement,
    by_chance,
    chains,
    edge_matches,
    largest_share,
    nearest,
    number,
    ranked,
    rounded,
    weight_directions,
)
from clt_lightning.analysis.circuits.residual.relevance import relevance, residual_model
from clt_lightning.analysis.spatial import moran
from clt_lightning.analysis.target import Target
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.transcoder import CrossLayerTranscoder

#: What is told of how numbers spread over features
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: Numbers of a feature
NUMBERS = ("frequency", "selectivity", "position_share", "moran", "moran_images")
#: What makes a feature of the layer before the nearest one
RULES = ("weights", "profiles", "edges")


@dataclass(frozen=True)
class Evolution:
    """Features over the layers.

    Attributes:
        blocks: the backbone's block of each layer.
        n_images: images behind the numbers.
        patches: patches of an image.
        frequency: `(layers, F)`: the share of tokens at which each fires.
        selectivity: `(layers, F)` bits that a position tells about whether the feature fires there, less what chance
            would (Miller and Madow's term); NaN for features that never fire.
        position_share: the same over the entropy of firing: 1 if the position says all.
        moran: `(layers, F)` Moran's I of the feature's map over the patches (queen's neighbours), mean over images in
            which at least `MORAN_ACTIVE` patches and at most `MORAN_SHARE` of them fire; NaN where there is none.
            Without any order it is about -1 / (patches - 1).
        moran_images: `(layers, F)`: how many those are.
        weights: by pair of layers, encoder of the later by decoder of the earlier: the cosine. Features that never fire
            have none.
        profiles: by pair of layers, Spearman's correlation of what the features are over images (summed codes).
        chance: of weights and profiles, by pair of layers: how near the nearest is without any relation, for some
            features of the later one (`by_chance`).
        edges: by pair of layers, the strongest edges, a mean over images; None where there are none (`with_edges`).
        edge_shares: by pair of layers `(F,)`, the strongest edge's share of all positive ones into a feature.
    """

    blocks: tuple[int, ...]
    n_images: int
    patches: int
    frequency: Tensor
    selectivity: Tensor
    position_share: Tensor
    moran: Tensor
    moran_images: Tensor
    weights: list[Matches] = field(repr=False)
    profiles: list[Matches] = field(repr=False)
    chance: dict[str, list[Tensor]] = field(repr=False)
    edges: list[Matches] | None = field(default=None, repr=False)
    edge_shares: list[Tensor] | None = field(default=None, repr=False)

    def with_edges(self, total: list[Tensor], matches: int = 3) -> Evolution:
        """The same with edges that were summed over its images (`summed_edges`)."""
        mean = [weight / self.n_images for weight in total]
        return replace(self, edges=edge_matches(mean, matches), edge_shares=[largest_share(weight) for weight in total])

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in `evolution/results.json` (docs/results-schema.md)."""
        matches = {rule: found for rule in RULES if (found := getattr(self, rule)) is not None}
        layers = []
        for layer, block in enumerate(self.blocks):
            alive = self.frequency[layer] > 0
            numbers = {name: getattr(self, name)[layer] for name in NUMBERS}
            layers.append(
                {
                    "block": block,
                    "alive": int(alive.sum()),
                    "spread": {name: _spread(values[alive]) for name, values in numbers.items()},
                    **{name: rounded(values) for name, values in numbers.items()},
                }
            )
        pairs = [self._pair(i, matches) for i in range(len(self.blocks) - 1)]
        return {
            "images": self.n_images,
            "patches": self.patches,
            "quantiles": list(QUANTILES),
            "layers": layers,
            "pairs": pairs,
            "chains": {rule: [chain.to_json() for chain in chains(found)] for rule, found in matches.items()},
        }

    def _pair(self, i: int, matches: dict[str, list[Matches]]) -> dict[str, Any]:
        content: dict[str, Any] = {"from": self.blocks[i], "to": self.blocks[i + 1], "edges": None}
        for rule, found in matches.items():
            entry = found[i].to_json() | {"spread": _spread(found[i].value[:, 0])}
            if rule in self.chance:
                entry["chance"] = _spread(self.chance[rule][i])
            if rule == "edges" and self.edge_shares is not None:
                entry |= {"share": rounded(self.edge_shares[i]), "share_spread": _spread(self.edge_shares[i])}
            content[rule] = entry
        names = list(matches)
        content["same"] = {
            f"{a}, {b}": None if (share := agreement(matches[a][i], matches[b][i])) is None else round(share, 6)
            for n, a in enumerate(names)
            for b in names[n + 1 :]
        }
        return content


def _spread(values: Tensor) -> list[float | None]:
    """The `QUANTILES` of what is known; None where nothing is."""
    known = values[~values.isnan()].double()
    if not known.numel():
        return [None] * len(QUANTILES)
    found = known.quantile(torch.tensor(QUANTILES, dtype=torch.float64, device=known.device))
    return [number(v) for v in found.tolist()]


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
    profiles = [ranked(torch.cat(part).T) for part in sums.profiles]  # (F, images) each
    selectivity, share = sums.selectivity()
    count = sums.moran_images.clamp(min=1)
    fires = sums.fired.sum(1) > 0
    by_weights, chance = [], []
    for layer in pairs:
        directions = weight_directions(clt, layer, (fires[layer], fires[layer + 1]))
        by_weights.append(nearest(*directions, matches))
        chance.append(by_chance(*directions, mixed=True))
    return Evolution(
        features.blocks,
        sums.n,
        clip.grid[0] * clip.grid[1],
        (sums.fired.sum(1) / (sums.n * clip.n_positions)).float(),
        selectivity,
        share,
        torch.where(sums.moran_images > 0, sums.moran / count, float("nan")).float(),
        sums.moran_images.long(),
        by_weights,
        [nearest(profiles[layer], profiles[layer + 1], matches) for layer in pairs],
        {
            "weights": chance,
            "profiles": [by_chance(profiles[layer], profiles[layer + 1], mixed=False) for layer in pairs],
        },
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

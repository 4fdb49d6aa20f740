"""The arms of a study of amplification: what each of them does to an image, and what it may choose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.amplify.places import Observed, Seen
from clt_lightning.analysis.amplify.training import Training, contrast, mixed, same_side, votes
from clt_lightning.analysis.collector import key_seeds
from clt_lightning.core.errors import UserError

#: What each arm is, in words
WORDS = {
    "none": "untouched",
    "vs2": "codes amplified (VS2)",
    "vs2_gated": "the same, gated",
    "vs2pp_majority": "neighbours' codes, most frequent class (VS2++)",
    "vs2pp_query": "neighbours' codes, image's own class (VS2++)",
    "vs2pp_oracle": "neighbours' codes, true classes (oracle)",
    "centroid": "away from the mean, no transcoder",
    "random": "random direction, same length",
    "rag": "neighbours' embeddings mixed in (RAG)",
    "knn_pseudo": "neighbours' vote, pseudo-labels",
    "knn": "neighbours' vote, true labels (k-NN)",
    "probe": "linear probe, true labels",
    "ensemble": "prompt ensemble",
}
#: Arms that displace [CLS]
STEERING = ("vs2", "vs2_gated", "vs2pp_majority", "vs2pp_query", "vs2pp_oracle", "centroid", "random")
#: Arms that read the training images' labels (the oracle also those of the images that are measured)
SUPERVISED = ("vs2pp_oracle", "knn", "probe")
#: Shares of the neighbours' mean that the RAG form tries, and numbers of neighbours that vote
SHARES = (0.1, 0.25, 0.5, 0.75)
VOTERS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class Choice:
    """One candidate of an arm.

    Attributes:
        gamma: what codes are multiplied by; `strength`: lambda, what the change is multiplied by. Decoders are linear,
            so that `alpha = strength * (gamma - 1)` alone acts.
        quantile: of the gate.
        share: of the neighbours' mean embedding.
        k: neighbours that vote.
    """

    gamma: float | None = None
    strength: float | None = None
    quantile: float | None = None
    share: float | None = None
    k: int | None = None

    @property
    def alpha(self) -> float:
        """How far an image is moved, in units of what its codes write."""
        gamma, strength = self.gamma, self.strength
        assert gamma is not None
        assert strength is not None
        return strength * (gamma - 1)

    def to_json(self) -> dict[str, float]:
        """The values that this arm has."""
        named = {name: getattr(self, name) for name in ("gamma", "strength", "quantile", "share", "k")}
        return {name: value for name, value in named.items() if value is not None}


def candidates(
    arm: str, gammas: Sequence[float], strengths: Sequence[float], quantiles: Sequence[float], neighbours: int
) -> list[Choice]:
    """What an arm tries on the validation images, the smallest change first."""
    pairs = sorted(itertools.product(gammas, strengths), key=lambda pair: abs(pair[1] * (pair[0] - 1)))
    if arm == "vs2_gated":
        return [Choice(gamma, strength, quantile=q) for gamma, strength in pairs for q in quantiles]
    if arm in STEERING:
        return [Choice(gamma, strength) for gamma, strength in pairs]
    if arm == "rag":
        return [Choice(share=share) for share in SHARES]
    if arm in ("knn", "knn_pseudo"):
        return [Choice(k=k) for k in VOTERS if k <= neighbours] or [Choice(k=neighbours)]
    return [Choice()]


@dataclass
class Query:
    """Images that are measured, as the untouched model sees them.

    Attributes:
        observed: [CLS], embeddings and where the moved model starts.
        keys: the images'.
        labels: `(images,)` the true ones; of the arms, the oracle alone reads them.
        pseudo_labels: `(images,)` what the untouched model names.
        neighbours: `(images, k)` training images, nearest first; `cosines` with them.
        open: by quantile and place, `(targets, images)` bool: which images the gate let through; filled as arms run.
    """

    observed: Observed
    keys: list[str]
    labels: Tensor
    pseudo_labels: Tensor
    neighbours: Tensor
    cosines: Tensor
    open: dict[tuple[float, int], Tensor] = field(default_factory=dict)


class Displacements:
    """What each steering arm adds to [CLS], before it is multiplied by alpha.

    Args:
        training: of the training images.
        slices: by place the rows of its targets in the gate.
        seed: of the random directions.
    """

    def __init__(self, training: Training, slices: Sequence[slice], seed: int) -> None:
        self.training, self.slices, self.seed = training, list(slices), seed
        self._limits: dict[float, Tensor] = {}

    def limits(self, quantile: float) -> Tensor:
        """`(statistics, targets, 2)` the gate's."""
        if quantile not in self._limits:
            self._limits[quantile] = self.training.gate.limits(quantile)
        return self._limits[quantile]

    def gate(self, seen: Seen, place: int, quantile: float) -> Tensor:
        """`(targets, images)` bool: which images look like the training images there, and are steered."""
        rows = self.slices[place]
        y, y_hat = seen.rebuilt
        found = self.training.gate.read(y.transpose(0, 1), (y - y_hat).square().sum(2).T, rows)
        low, high = self.limits(quantile)[:, rows, :, None].to(found).unbind(2)
        return ((found >= low) & (found <= high)).all(0)

    def __call__(self, arm: str, choice: Choice, query: Query, place: int, seen: Seen) -> Tensor:
        """`(images, d)`: what is added at a place, alpha included."""
        return choice.alpha * self._direction(arm, choice, query, place, seen)

    def _direction(self, arm: str, choice: Choice, query: Query, place: int, seen: Seen) -> Tensor:
        if arm == "vs2":
            return seen.terms.sum(0)
        if arm == "vs2_gated":
            assert choice.quantile is not None
            lets = query.open[choice.quantile, place] = self.gate(seen, place, choice.quantile)
            return (seen.terms * lets[:, :, None]).sum(0)
        if arm == "centroid":
            return seen.x - self.training.x_means[place].to(seen.x)
        if arm == "random":
            directions = self._random(query.keys, place, seen.x)
            lengths: Tensor = seen.terms.sum(0).norm(dim=1, keepdim=True)
            return directions * lengths
        same = self.same(arm, query)
        return contrast(self.training.terms[place], query.neighbours, same).to(seen.x) * seen.unit.to(seen.x)

    def same(self, arm: str, query: Query) -> Tensor:
        """`(images, k)` bool: S+ of a VS2++ arm."""
        known = self.training.labels if arm == "vs2pp_oracle" else self.training.pseudo_labels
        of_query = {"vs2pp_majority": None, "vs2pp_query": query.pseudo_labels, "vs2pp_oracle": query.labels}[arm]
        return same_side(known[query.neighbours], of_query)

    def _random(self, keys: Sequence[str], place: int, like: Tensor) -> Tensor:
        """A direction of each image's own, the same in every run and batch."""
        rows = []
        for number in key_seeds(keys).tolist():
            generator = torch.Generator().manual_seed((number + 7919 * self.seed + place) & 0x7FFF_FFFF_FFFF_FFFF)
            rows.append(torch.randn(like.shape[1], generator=generator))
        drawn = torch.stack(rows) if rows else like.new_zeros(0, like.shape[1], device="cpu")
        return F.normalize(drawn, dim=1).to(like)


def by_neighbours(arm: str, choice: Choice, query: Query, training: Training, n_classes: int) -> Tensor:
    """`(images, ...)`: embeddings of the RAG form, or votes of a k-NN arm."""
    if arm == "rag":
        assert choice.share is not None
        known = training.embeddings
        return mixed(query.observed.embeddings.cpu(), query.neighbours, query.cosines, known, choice.share)
    known = training.labels if arm == "knn" else training.pseudo_labels
    return votes(known[query.neighbours[:, : choice.k]], query.cosines[:, : choice.k], n_classes)


def check_arms(names: Sequence[str] | None) -> list[str]:
    """The arms to run, `none` first.

    Raises:
        UserError: there is no such arm.
    """
    for name in names or ():
        if name not in WORDS:
            raise UserError(f"there is no arm {name!r}: choose from {', '.join(WORDS)}")
    return [name for name in WORDS if names is None or name == "none" or name in names]

"""Faithfulness: does the model notice when the terms that score highest are taken away?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clt_lightning.analysis.intervals import NOTHING, Interval, interval, share_interval
from clt_lightning.analysis.tower import Observation, finish, reads_cls_only
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.metrics import check_token_sets, divergences, metric_device, ranks_of, token_mask
from clt_lightning.metrics.base import ExactMetric
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

_BLOCK = 1 << 24  # elements of the terms or of the stream that are held at once

Curve = dict[str, list[Any]]


@dataclass
class FaithfulnessOptions:
    """Which terms are taken away, where.

    Args:
        enabled: take terms away at all.
        layers: layers whose reconstruction is edited; null takes the last. Earlier ones cost forwards of the rest of
            the tower: (draws + 2) times the number of terms for each ranking, ablation and token set.
        token_sets: at which positions the MLP is replaced by the edited reconstruction, and which tokens the scores of
            an image are averaged over: cls, register, patch, all; null: cls, where there is one, and all.
        rankings: `image` orders the terms by their scores in the image itself, `dataset` by the scores over the
            training images (needs `population.images`).
        ablations: `zero` leaves a term out, `mean` puts it to its mean over the training images (needs
            `population.images`).
        draws: random orders of the terms, the control.
    """

    enabled: bool = True
    layers: list[int] | None = None
    token_sets: list[str] | None = None
    rankings: list[str] = field(default_factory=lambda: ["image", "dataset"])
    ablations: list[str] = field(default_factory=lambda: ["zero", "mean"])
    draws: int = 20

    def __post_init__(self) -> None:
        check_fields(self, "faithfulness")
        if self.token_sets is not None:
            check_token_sets(self.token_sets, option="faithfulness.token_sets")
        for name, allowed in (("rankings", ("image", "dataset")), ("ablations", ("zero", "mean"))):
            wrong = [value for value in getattr(self, name) if value not in allowed]
            if wrong:
                raise UserError(f"faithfulness.{name}: unknown are {wrong}, known {', '.join(allowed)}")
        if self.draws < 1:
            raise UserError(f"faithfulness.draws must be at least 1, got {self.draws}")


@dataclass(frozen=True)
class FaithfulnessResult:
    """What taking terms away costs; index n of a curve = n of the `terms` terms taken away.

    Attributes:
        layer: the target layer whose reconstruction is edited.
        tokens: the positions that are replaced.
        ranking: `image` or `dataset`.
        ablation: `zero` or `mean`.
        n: labelled images.
        original: top-1 of the untouched model.
        drop_top: the highest scores are taken away first: `top1` intervals and `kl` from the original.
        drop_bottom: the lowest first; keep_top[n] is drop_bottom[terms - n].
        drop_random: random orders: mean over the draws, and the interval that holds 95 % of them.
        draws: number of random orders.
        rest: top-1 and KL without any feature: linear skip and decoder bias alone.
    """

    layer: int
    tokens: str
    ranking: str
    ablation: str
    n: int
    original: Interval
    drop_top: tuple[list[Interval], list[float]]
    drop_bottom: tuple[list[Interval], list[float]]
    drop_random: tuple[list[Interval], list[float]]
    draws: int
    rest: tuple[Interval, float] = (NOTHING, math.nan)

    @property
    def terms(self) -> int:
        return len(self.drop_top[1]) - 1

    def auc(self) -> dict[str, float]:
        """Areas under top-1 against the share of terms: `deletion` (faithful: low), `insertion` (high), `random`."""
        curves = {
            "deletion": self.drop_top[0],
            "insertion": self.drop_bottom[0][::-1],
            "random": self.drop_random[0],
        }
        return {
            name: (sum(point.value for point in points) - (points[0].value + points[-1].value) / 2) / self.terms
            for name, points in curves.items()
        }

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""

        def curve(points: tuple[list[Interval], list[float]]) -> Curve:
            return {"top1": [p.to_json() for p in points[0]], "kl": finite(points[1])}

        return {
            "layer": self.layer,
            "tokens": self.tokens,
            "ranking": self.ranking,
            "ablation": self.ablation,
            "terms": self.terms,
            "n": self.n,
            "baseline": {"top1": self.drop_top[0][0].to_json(), "kl": finite(self.drop_top[1][0])},
            "original": {"top1": self.original.to_json()},
            "rest": {"top1": self.rest[0].to_json(), "kl": finite(self.rest[1])},
            "draws": self.draws,
            "drop_top": curve(self.drop_top),
            "drop_bottom": curve(self.drop_bottom),
            "drop_random": curve(self.drop_random),
            "auc": finite(self.auc()),
        }


def image_scores(terms: Float[Tensor, "terms images positions d"]) -> Float[Tensor, "images terms"]:
    """Contribution scores within each image: `(images, sources)` from terms `(sources, images, positions, d_model)`.

    `(1/T) sum_t <c_i^t, yhat^t> / ||yhat^t||^2`; tokens with yhat = 0 count as 0.
    """
    device = metric_device(terms.device)
    step = max(1, _BLOCK * terms.shape[1] // max(1, terms.numel()))
    rows = []
    for part in terms.split(step, 1):
        wide = part.to(device).double()
        y_hat = wide.sum(0)
        squares = y_hat.square().sum(-1)
        dots = torch.einsum("sbpd,bpd->sbp", wide, y_hat)
        rows.append(torch.where(squares > 0, dots / squares.clamp(min=1e-300), 0.0).mean(-1).T)
    return torch.cat(rows)


def random_orders(terms: int, draws: int, seed: int = 0) -> Int[Tensor, "draws terms"]:
    """`(draws, terms)` random orders.

    A draw takes the same terms away from every image: the spread over draws tells how much it matters which ones.
    """
    base = np.broadcast_to(np.arange(terms), (draws, terms))
    return torch.from_numpy(np.random.default_rng(seed).permuted(base, axis=1))


def keep_masks(orders: Int[Tensor, "... terms"]) -> Bool[Tensor, "points ... terms"]:
    """Which terms are kept while terms are taken away in some order.

    Args:
        orders: `(..., terms)` indices, first to be taken away first.

    Returns:
        `(terms + 1, ..., terms)` bool; row n has the first n of the order taken away.
    """
    terms = orders.shape[-1]
    place = torch.empty_like(orders).scatter_(-1, orders, torch.arange(terms, device=orders.device).expand_as(orders))
    counts = torch.arange(terms + 1, device=orders.device).view(-1, *[1] * orders.dim())
    return place >= counts


class Faithfulness(ExactMetric):
    """Sums for one target layer and token set, both rankings, one ablation.

    Args:
        clip: the backbone.
        clt: the transcoder.
        layer: target layer.
        tokens: positions that are replaced.
        draws: random orders.
        dataset_scores: `(layer + 1,)` scores for the ranking `dataset`; None leaves it out.
        means: `(kinds, layer + 1, d_model)` mean terms at each of `clip.tokens.kinds`, for mean ablation; None for zero
            ablation.
        image_ranking: whether to rank by the image's own scores as well.
        seed: seed of the random orders.
    """

    right: Tensor
    kl: Tensor
    original_right: Tensor
    rest_right: Tensor
    rest_kl: Tensor
    labelled: Tensor
    images: Tensor

    def __init__(
        self,
        clip: FrozenCLIP,
        clt: CrossLayerTranscoder,
        layer: int,
        tokens: str = "cls",
        draws: int = 20,
        dataset_scores: Float[Tensor, " terms"] | None = None,
        means: Float[Tensor, "kinds terms d"] | None = None,
        image_ranking: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_clip", clip)
        object.__setattr__(self, "_clt", clt)
        self.layer, self.target_tokens, self.draws, self.seed = layer, tokens, draws, seed
        self.terms = layer + 1
        self.rankings = [name for name, on in (("image", image_ranking), ("dataset", dataset_scores is not None)) if on]
        object.__setattr__(self, "_dataset_scores", dataset_scores)
        object.__setattr__(self, "_means", means)
        rows = 2 * len(self.rankings) + draws
        for name, shape in (
            ("right", (rows, self.terms + 1)),
            ("kl", (rows, self.terms + 1)),
            ("original_right", ()),
            ("rest_right", ()),
            ("rest_kl", ()),
            ("labelled", ()),
            ("images", ()),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        seen: Observation,
        codes: Codes,
        head: Float[Tensor, "embed_dim classes"],
        scale: float,
        labels: Int[Tensor, " images"],
    ) -> None:
        """Take in one batch.

        Args:
            seen: the untouched model, observed with `before_mlp` of this layer.
            codes: the codes of its x (of its y for topology sae).
            head: `(embed_dim, classes)`.
            scale: factor from cosines to logits.
            labels: `(images,)`, -1 for none.
        """
        clt: CrossLayerTranscoder = self.__dict__["_clt"]
        clip: FrozenCLIP = self.__dict__["_clip"]
        b = seen.n_images
        raw = clt.layer_terms([codes.slice(i) for i in range(self.terms)], self.layer)
        terms = raw.unflatten(1, (b, -1))
        positions = clip.tokens.span(self.target_tokens)
        orders = self._orders(terms[:, :, positions])
        masks = keep_masks(orders).to(terms.dtype)  # (terms + 1, rows, images, terms)
        constant = (clt.bias(self.layer) + clt.skip_term(seen.x[self.layer], self.layer)).view(b, -1, clt.d_model)
        original = seen.embeddings.float() @ head
        self.images += b
        self.labelled += (labels >= 0).sum()
        self.original_right += (ranks_of(original, labels) == 0).sum()
        # where the embedding is read from [CLS] after the last block, what other positions get plays no part
        only_cls = self.layer == clip.n_layers - 1 and reads_cls_only(clip)
        read = slice(0, 1) if only_cls else slice(None)
        stream = seen.before_mlp[self.layer][:, read]
        true_y = seen.y[self.layer].view(b, -1, clt.d_model)[:, read]
        replaced_here = self._replaced_positions(true_y.shape[1], true_y.device)
        rest = torch.where(replaced_here[:, None], constant[:, read].to(true_y.dtype), true_y)
        cosines = finish(clip, stream + rest, self.layer + 1).float() @ head
        self.rest_right += (ranks_of(cosines, labels) == 0).sum()
        self.rest_kl += divergences(original, cosines, scale).sum().to(self.rest_kl)
        n_rows = masks.shape[1]
        step = max(1, _BLOCK // (stream.numel() * (self.terms + 1)))
        for start in range(0, n_rows, step):
            mask = masks[:, start : start + step]
            y_hat = torch.einsum("nrbs,sbpd->nrbpd", mask, terms[:, :, read]) + constant[:, read]
            y_hat = y_hat + self._mean_part(1 - mask, true_y.shape[1])
            y = torch.where(replaced_here[:, None], y_hat.to(true_y.dtype), true_y)
            e = finish(clip, (stream + y).flatten(0, 2), self.layer + 1)
            cosines = e.float() @ head
            points = mask.shape[0] * mask.shape[1]
            kl = divergences(original.repeat(points, 1), cosines, scale).view(*mask.shape[:2], b).sum(-1)
            hit = (ranks_of(cosines, labels.repeat(points)) == 0).view(*mask.shape[:2], b).sum(-1)
            self.right[start : start + step] += hit.T.to(self.right)
            self.kl[start : start + step] += kl.T.to(self.kl)

    def _orders(self, terms: Tensor) -> Tensor:
        """`(rows, images, terms)`: for each ranking highest first and lowest first, then the random ones."""
        rows = []
        scores = {"image": image_scores(terms)}
        if self.__dict__["_dataset_scores"] is not None:
            scores["dataset"] = self.__dict__["_dataset_scores"].to(scores["image"]).expand(terms.shape[1], -1)
        for name in self.rankings:
            top = scores[name].argsort(dim=1, descending=True, stable=True).to(terms.device)
            rows += [top, top.flip(1)]
        drawn = random_orders(self.terms, self.draws, self.seed).to(terms.device)
        drawn = drawn[:, None].expand(-1, terms.shape[1], -1)
        return torch.cat([torch.stack(rows), drawn]) if rows else drawn

    def _replaced_positions(self, n_positions: int, device: torch.device) -> Tensor:
        clip: FrozenCLIP = self.__dict__["_clip"]
        return token_mask(self.target_tokens, clip.tokens, clip.n_positions, device)[:n_positions]

    def _mean_part(self, dropped: Tensor, n_positions: int) -> Tensor:
        means: Tensor | None = self.__dict__["_means"]
        if means is None:
            return dropped.new_zeros(())
        kinds = torch.einsum("nrbs,ksd->nrbkd", dropped, means.to(dropped))
        clip: FrozenCLIP = self.__dict__["_clip"]
        index = clip.tokens.kind_of_positions()[:n_positions]
        return kinds[:, :, :, index]

    def compute(self) -> tuple[Float[Tensor, "rows points"], Float[Tensor, "rows points"], Float[Tensor, " numbers"]]:
        """Right answers `(rows, terms + 1)`, mean KL of the same shape, and four numbers.

        These are the labelled images, and of them those that the untouched model and the one with skip and bias alone
        get right, and the latter's mean KL.
        """
        numbers = [self.labelled, self.original_right, self.rest_right, self.rest_kl / self.images]
        return self.right, self.kl / self.images, torch.stack([number.reshape(()) for number in numbers])

    def results(
        self,
        sums: tuple[Float[Tensor, "rows points"], Float[Tensor, "rows points"], Float[Tensor, " numbers"]],
        bootstrap: int,
        seed: int = 0,
    ) -> list[FaithfulnessResult]:
        """Typed results, one a ranking, from what `compute` returned.

        Args:
            sums: the result of `compute`.
            bootstrap: number of resamples for the intervals.
            seed: their seed.
        """
        right, kl = sums[0].cpu().numpy(), sums[1].cpu().numpy()
        n, original, rest = (int(v) for v in sums[2].tolist()[:3])
        ablation = "zero" if self.__dict__["_means"] is None else "mean"

        def row(index: int) -> tuple[list[Interval], list[float]]:
            return [share_interval(v, n, bootstrap, seed) for v in right[index]], [float(v) for v in kl[index]]

        drawn = right[2 * len(self.rankings) :] / max(n, 1)
        shares = [NOTHING if n == 0 else interval(float(v.mean()), v) for v in drawn.T]
        control = shares, [float(v) for v in kl[2 * len(self.rankings) :].mean(0)]
        return [
            FaithfulnessResult(
                self.layer,
                self.target_tokens,
                ranking,
                ablation,
                n,
                share_interval(original, n, bootstrap, seed),
                row(2 * index),
                row(2 * index + 1),
                control,
                self.draws,
                (share_interval(rest, n, bootstrap, seed), float(sums[2][3])),
            )
            for index, ranking in enumerate(self.rankings)
        ]

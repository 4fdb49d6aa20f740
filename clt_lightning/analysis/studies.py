"""Which features several data sets share, and which are one set's own: usage rates, tests, entropy of use.

The unit is the image: tokens of an image are not independent of each other. Everything is post hoc, from codes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

LEVEL = 0.95
#: What a feature is to the sets: it fired in none; it is used alike; it is used unevenly; one set has nearly all of it
KINDS = ("dead", "shared", "uneven", "specific")
#: Share of a feature's use, summed over sets of equal weight, from which it counts as one set's own
OWN = 0.9


def wilson(counts: np.ndarray, totals: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a share, which holds for 0 of n as well.

    Args:
        counts: how many of `totals`; of any shape.
        totals: of a shape that fits.
        level: of the interval.

    Returns:
        lower and upper ends; NaN where the total is 0.
    """
    z = stats.norm.ppf(0.5 + level / 2)
    n = np.where(np.asarray(totals) > 0, totals, np.nan).astype(np.float64)
    p = np.asarray(counts) / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    low, high = np.where(p == 0, 0.0, low), np.where(p == 1, 1.0, high)  # exact there, but for rounding
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values: the smallest false-discovery rate at which each test counts as one; NaNs stay and count as no test."""
    p = np.asarray(p, np.float64)
    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested])
    return q


def same_rate(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """p-values of "the rate is the same in all sets": Fisher's exact test of two sets, else Pearson's chi-square.

    Args:
        counts: `(..., sets)` images with the feature.
        totals: `(sets,)` images.

    Returns:
        `(...)`; NaN where the feature fired on no image, or on all of every set.
    """
    counts = np.asarray(counts, np.int64)
    totals = np.asarray(totals, np.int64)
    every = counts.sum(-1)
    out = np.full(counts.shape[:-1], np.nan)
    varies = (every > 0) & (every < totals.sum())
    if len(totals) == 2:
        # the two-sided test depends on the pair of counts alone, of which there are few
        pairs, place = np.unique(counts[varies], axis=0, return_inverse=True)
        values = [stats.fisher_exact([[a, totals[0] - a], [b, totals[1] - b]])[1] for a, b in pairs.tolist()]
        out[varies] = np.asarray(values)[place.reshape(-1)] if len(pairs) else 0.0
        return out
    rate = every[varies, None] / totals.sum()
    expected = rate * totals
    square = (counts[varies] - expected) ** 2 / (expected * (1 - rate))
    out[varies] = stats.chi2.sf(square.sum(-1), len(totals) - 1)
    return out


def use_entropy(rates: np.ndarray) -> np.ndarray:
    """Entropy of a feature's use over the sets, 0 (one set alone) to 1 (all alike); NaN where it has none.

    Args:
        rates: `(..., sets)` rates of use; sets count alike, however many images each has.
    """
    rates = np.asarray(rates, np.float64)
    total = rates.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = rates / total
        terms = np.where(share > 0, share * np.log(share), 0.0)
    return np.where(total[..., 0] > 0, -terms.sum(-1) / np.log(rates.shape[-1]), np.nan)


@dataclass(frozen=True)
class StudyUse:
    """How features are used in each of several sets.

    Attributes:
        names: of the sets.
        images: `(sets,)`.
        counts: `(L, F, sets)` images on which a feature is active.
        l0: `(sets, L)` mean active features of a token.
        fvu: `(sets, L)` fraction of variance unexplained, against the set's own mean.
        threshold: `(sets,)` the one number that codes must exceed for the set to have the L0 that all sets have
            together, in units of the codes: where these differ, one threshold for all gives sets different L0.
    """

    names: tuple[str, ...]
    images: np.ndarray
    counts: np.ndarray
    l0: np.ndarray
    fvu: np.ndarray
    threshold: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """`(L, F, sets)` share of the set's images on which a feature is active."""
        result: np.ndarray = self.counts / np.maximum(self.images, 1)
        return result

    def intervals(self, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Wilson's intervals of `rates`, each `(L, F, sets)`."""
        return wilson(self.counts, self.images, level)

    @property
    def q(self) -> np.ndarray:
        """`(L, F)` q-values of "used alike in all sets", over all features that fired."""
        return benjamini_hochberg(same_rate(self.counts, self.images))

    @property
    def entropy(self) -> np.ndarray:
        """`(L, F)` entropy of use, 0 (one set's own) to 1 (used alike)."""
        return use_entropy(self.rates)

    def kinds(self, fdr: float = 0.05) -> np.ndarray:
        """`(L, F)` int8, an index of `KINDS`.

        A feature is `specific` where the sets differ at this false-discovery rate and one has `OWN` of its use,
        `uneven` where they differ, and else `shared`: no difference was found, which few images may be the reason of.
        """
        share = self.rates / np.maximum(self.rates.sum(-1, keepdims=True), 1e-300)
        differs = np.nan_to_num(self.q, nan=1.0) <= fdr
        kinds = np.where(differs, np.where(share.max(-1) >= OWN, 3, 2), 1)
        result: np.ndarray = np.where(self.counts.sum(-1) > 0, kinds, 0).astype(np.int8)
        return result

    def table(self) -> dict[str, Any]:
        """What a page or a file says of each set and each kind: plain numbers."""
        kinds = self.kinds()
        own = np.where(kinds == KINDS.index("specific"), self.rates.argmax(-1), -1)
        return {
            "sets": [
                {
                    "name": name,
                    "images": int(self.images[i]),
                    "l0": self.l0[i].tolist(),
                    "fvu": self.fvu[i].tolist(),
                    "threshold": float(self.threshold[i]),
                    "specific": [int((own[layer] == i).sum()) for layer in range(len(kinds))],
                }
                for i, name in enumerate(self.names)
            ],
            "kinds": {kind: [int((row == k).sum()) for row in kinds] for k, kind in enumerate(KINDS)},
        }


class StudyCounter:
    """Adds up, batch by batch, what `StudyUse` is made of.

    Args:
        names: of the sets; a batch's `study` numbers them.
        n_layers: L.
        n_features: F.
        d_out: width of y.
    """

    def __init__(self, names: Sequence[str], n_layers: int, n_features: int, d_out: int) -> None:
        if len(names) < 2:
            raise UserError(f"studies are compared with each other: name two or more, got {', '.join(names) or 'none'}")
        sets = len(names)
        self.names = tuple(names)
        self.images = torch.zeros(sets, dtype=torch.int64)
        self.tokens = torch.zeros(sets, dtype=torch.int64)
        self.counts = torch.zeros(sets, n_layers, n_features, dtype=torch.int64)
        self.active = torch.zeros(sets, n_layers, dtype=torch.float64)
        self.rest = torch.zeros(sets, n_layers, dtype=torch.float64)
        self.squares = torch.zeros(sets, n_layers, dtype=torch.float64)
        self.sums = torch.zeros(sets, n_layers, d_out, dtype=torch.float64)
        self.values: list[list[torch.Tensor]] = [[] for _ in names]

    @torch.no_grad()
    def update(self, study: torch.Tensor, codes: Codes, y: torch.Tensor, y_hat: torch.Tensor) -> None:
        """Takes a batch of whole images.

        Args:
            study: `(images,)` int64, the set of each image.
            codes: `(L, tokens, F)`, image-major.
            y: `(L, tokens, d_out)` targets.
            y_hat: the same shape.

        Raises:
            UserError: tokens that are no multiple of the images, or a set without a name.
        """
        n = len(study)
        if codes.n_tokens % max(n, 1):
            raise UserError(f"{codes.n_tokens} tokens cannot be of {n} whole images")
        if n and not (int(study.min()) >= 0 and int(study.max()) < len(self.names)):
            raise UserError(f"a batch's study must be 0..{len(self.names) - 1} ({', '.join(self.names)}), got {study}")
        each = codes.n_tokens // max(n, 1)
        of_token = study.cpu().repeat_interleave(each)
        ones = torch.ones_like(study.cpu())
        self.images.index_add_(0, study.cpu(), ones)
        self.tokens.index_add_(0, of_token, torch.ones_like(of_token))
        for layer in range(codes.n_layers):
            pairs, values = codes.layer(layer)
            fires = values != 0
            tokens, features = pairs.tokens[fires].cpu(), pairs.features[fires].cpu()
            on = torch.zeros(n, self.counts.shape[2], dtype=torch.bool)
            on[tokens // each, features] = True
            self.counts[:, layer].index_add_(0, study.cpu(), on.to(torch.int64))
            self.active[:, layer].index_add_(0, of_token[tokens], torch.ones(len(tokens), dtype=torch.float64))
            for i in range(len(self.names)):
                self.values[i].append(values[fires].abs().cpu()[of_token[tokens] == i].float())
        rest = (y_hat.double() - y.double()).square().sum(-1).cpu()
        square = y.double().square().sum(-1).cpu()
        self.rest.index_add_(0, of_token, rest.T)
        self.squares.index_add_(0, of_token, square.T)
        self.sums.index_add_(0, of_token, y.double().cpu().transpose(0, 1))

    def result(self) -> StudyUse:
        """What has been added up."""
        n = self.tokens[:, None].clamp_min(1)
        variance = self.squares - self.sums.square().sum(-1) / n
        every = [torch.cat(values) if values else torch.zeros(0) for values in self.values]
        together = sum(len(v) for v in every) / max(1, int(self.tokens.sum()))
        thresholds = []
        for values, tokens in zip(every, self.tokens.tolist()):
            wanted = round(together * tokens)
            found = values.topk(min(wanted, len(values))).values if len(values) and wanted else torch.zeros(1)
            thresholds.append(float(found[-1]))
        return StudyUse(
            self.names,
            self.images.numpy(),
            self.counts.permute(1, 2, 0).numpy(),
            (self.active / n).numpy(),
            (self.rest / variance.clamp_min(1e-300)).numpy(),
            np.asarray(thresholds),
        )


@torch.no_grad()
def study_use(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    batches: Iterable[Any],
    names: Sequence[str],
    progress: bool = False,
) -> StudyUse:
    """How each set uses the features, from batches with `image` and `study`.

    Args:
        clip: the backbone.
        clt: the transcoder, of its MLPs or of other sites.
        batches: as of `data.Studies(...).eval_dataloader("test")`.
        names: of the sets.
        progress: say how far it is.

    Raises:
        UserError: a batch without `study`.
    """
    counter = StudyCounter(names, clt.n_layers, clt.n_features, clt.d_out)
    blocks = clt.sites.resolve(clip.n_layers, clip.name)
    sites = (str(clt.sites.read), str(clt.sites.write))
    was = clt.training
    clt.eval()
    for batch in track(batches, "studies", unit="batches", show=progress):
        if "study" not in batch:
            raise UserError("a batch has no `study`: read several sets with data.Studies")
        images = batch["image"].to(clt.b_dec.device)
        acts = clip.capture(images, blocks, sites=sites)
        out = clt(acts.x)
        counter.update(batch["study"], clt.gather_codes(out.codes), acts.y, out.y_hat)
    clt.train(was)
    return counter.result()

"""`python -m benchmarks.planted_studies`: what the prior on use finds, and costs, where each feature's kind is known.

Two studies of one planted world: a third of the true features is on in both, a third in each alone, or nearly so
(`leak`). A transcoder is trained on both at once, without the prior and with it, and one on each study alone, all of as
many steps and tokens per step. Its features are matched to the true ones by their decoders, one to one; `AUC` is that
of what the study explains of use, of 1 - entropy of use, and of the prior's own inclusion probabilities, for the true
kind of those that were found.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.planted_training import fit, normalise
from benchmarks.studies import auc
from clt_lightning.analysis.studies import StudyCounter
from clt_lightning.core.table import Column, lay_out
from clt_lightning.data import Planted
from clt_lightning.training.priors import MultiStudy, Prior
from clt_lightning.transcoder import CrossLayerTranscoder, TopK

MATCHED = 0.7  # cosine of the decoders from which a true feature counts as found
NAMES = ("first", "second")


@dataclass(frozen=True)
class Studies:
    """Two studies of a planted world.

    Attributes:
        world: whose features they have.
        owner: `(L, F)` int64: the study that a true feature is of; -1: both.
        leak: rate of a feature in the study that it is not of, over its rate in the other.
    """

    world: Planted
    owner: Tensor
    leak: float

    @classmethod
    def of(cls, seed: int, leak: float, n_layers: int = 2, d_model: int = 24, n_features: int = 32) -> Studies:
        """Those of a seed."""
        world = Planted(n_layers, d_model, n_features, rate=(0.02, 0.1), carry=0.5, noise=0.02, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.stack([torch.randperm(n_features, generator=generator) for _ in range(n_layers)])
        return cls(world, order % 3 - 1, leak)

    def rates(self, study: int) -> Tensor:
        """`(L, F)` of the true features in a study."""
        mine = (self.owner < 0) | (self.owner == study)
        return self.world.rates * torch.where(mine, 1.0, self.leak)

    def batch(self, tokens: int, seed: int, studies: Sequence[int] = (0, 1)) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and the study of each token; as many of each."""
        parts = [self.world.sample(tokens // len(studies), seed=2 * seed + s, rates=self.rates(s)) for s in studies]
        place = torch.tensor(studies).repeat_interleave(tokens // len(studies))
        return torch.cat([p.x for p in parts], 1), torch.cat([p.y for p in parts], 1), place


def train(
    data: Studies,
    prior: Prior | None,
    steps: int,
    seed: int,
    studies: Sequence[int] = (0, 1),
    n_features: int = 48,
    k: int = 3,
    tokens: int = 256,
    lr: float = 5e-3,
) -> CrossLayerTranscoder:
    """A transcoder of some of the studies; the rate falls to 0 over the last fifth."""
    clt = CrossLayerTranscoder(data.world.n_layers, data.world.d_model, n_features, TopK(k), backend="dense", seed=seed)
    normalise(clt, *data.batch(4096, 10**6 + seed, studies)[:2])
    if prior is not None:
        prior.studies = NAMES
    batches = (data.batch(tokens, 1000 * seed + step, studies) for step in range(steps))
    return fit(clt, batches, steps, prior, lr)


@dataclass(frozen=True)
class Found:
    """One transcoder held against the studies.

    Attributes:
        auc: of what the study explains of use, for the true kind; NaN: of one study.
        entropy: the same of 1 - entropy of use.
        inclusion: the same of the prior's inclusion probabilities; NaN without one.
        kinds: of the features that were found, the share whose kind, by the tests, is the true one.
        matched: share of the true features that were found.
        fvu: of each study.
    """

    auc: float
    entropy: float
    inclusion: float
    kinds: float
    matched: float
    fvu: tuple[float, ...]


@torch.no_grad()
def held_against(data: Studies, clt: CrossLayerTranscoder, prior: MultiStudy | None = None) -> Found:
    """Fresh tokens of both studies; a token is an image."""
    counter = StudyCounter(NAMES, clt.n_layers, clt.n_features, clt.d_out)
    for study in (0, 1):
        x, y, place = data.batch(8192, 999_983, [study])
        out = clt(x)
        counter.update(place, out.codes, y, out.y_hat)
    use = counter.result()
    specific, scores, entropy, inclusion, right, matched = [], [], [], [], [], []
    for layer in range(clt.n_layers):
        mine = torch.nn.functional.normalize((clt.W_dec[layer] * clt.y_scale[layer:, None]).flatten(1), dim=1)
        true = torch.nn.functional.normalize(data.world.W_dec[layer].flatten(1), dim=1)
        cosine = (true @ mine.T).numpy()
        rows, columns = linear_sum_assignment(-cosine)
        near = (cosine[rows, columns] > MATCHED) & np.isfinite(use.entropy[layer, columns])
        rows, columns = rows[near], columns[near]
        own = (data.owner[layer][torch.from_numpy(rows)] >= 0).numpy()
        matched.append(len(rows) / len(true))
        specific.append(own)
        scores.append(np.nan_to_num(use.explained[layer, columns]))
        entropy.append(1 - use.entropy[layer, columns])
        right.append((use.kinds()[layer, columns] == 3) == own)
        if prior is not None:
            p = prior.p[layer][torch.from_numpy(columns)]
            inclusion.append((p[:, 0] - p[:, 1]).abs().numpy())
    known = np.concatenate(specific)
    return Found(
        auc(np.concatenate(scores), known),
        auc(np.concatenate(entropy), known),
        auc(np.concatenate(inclusion), known) if inclusion else float("nan"),
        float(np.concatenate(right).mean()),
        float(np.mean(matched)),
        tuple(use.fvu.mean(1).tolist()),
    )


def compare(seed: int, leak: float, steps: int, coefficients: Sequence[float]) -> dict[str, Found]:
    """All ways on the studies of a seed."""
    data = Studies.of(seed, leak)
    found = {"plain": held_against(data, train(data, None, steps, seed))}
    for coefficient in coefficients:
        prior = MultiStudy(coefficient)
        found[f"prior {coefficient:g}"] = held_against(data, train(data, prior, steps, seed), prior)
    alone = [held_against(data, train(data, None, steps, seed, [study])) for study in (0, 1)]
    nothing = float("nan")
    fvu = tuple(f.fvu[i] for i, f in enumerate(alone))
    found["each alone"] = Found(nothing, nothing, nothing, nothing, nothing, fvu)
    return found


def main() -> None:
    """Prints a table of each world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="worlds (and initial weights)")
    parser.add_argument("--leak", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--coefficients", type=float, nargs="+", default=[1e-6, 0.01, 0.03])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        found = compare(seed, options.leak, options.steps, options.coefficients)
        columns = [
            Column("AUC", [f"{f.auc:.3f}" for f in found.values()], 8),
            Column("of entropy", [f"{f.entropy:.3f}" for f in found.values()], 12),
            Column("of p", [f"{f.inclusion:.3f}" for f in found.values()], 8),
            Column("kinds right", [f"{f.kinds:.3f}" for f in found.values()], 13),
            Column("matched", [f"{f.matched:.2f}" for f in found.values()], 9),
            *(Column(f"FVU {name}", [f"{f.fvu[i]:.4f}" for f in found.values()], 12) for i, name in enumerate(NAMES)),
        ]
        print("\n".join(lay_out(Column(f"world {seed}", list(found), left=True), columns, None)), flush=True)


if __name__ == "__main__":
    main()

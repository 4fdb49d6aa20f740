"""Which layers features write to, found by three means in a world where it is known.

    python examples/planted_support.py            # three worlds; about five minutes on one core
    python examples/planted_support.py --seeds 7  # another one

Trains a transcoder on each planted world without a prior, with plain L1 on the decoder's groups, and with the
sparse-decoding prior, and cuts the plain one's smallest groups, to the number of groups that the prior left:
afterwards; at once while there are 40 % of the steps left to make up for it; and bit by bit until then.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from clt_lightning.core.table import Column, lay_out
from clt_lightning.data import Planted
from clt_lightning.training.losses import reconstruction_loss
from clt_lightning.training.optim import AdamW
from clt_lightning.training.priors import GroupL1, GroupPruning, SparseDecoding, WeightPrior
from clt_lightning.transcoder import CrossLayerTranscoder, StatisticsAccumulator, TopK
from clt_lightning.transcoder.support import depth_support, prune_groups

MATCHED = 0.7  # cosine of the decoders from which a true feature counts as found


@dataclass
class Found:
    """One transcoder held against its world."""

    fvu: float
    support: float
    matched: float
    mcc: float
    groups: float


def train(
    world: Planted, prior: WeightPrior | None, steps: int, n_features: int, k: int, seed: int, lr: float = 3e-3
) -> CrossLayerTranscoder:
    """A transcoder of the world's tokens; the rate falls to 0 over the last fifth."""
    clt = CrossLayerTranscoder(world.n_layers, world.d_model, n_features, TopK(k), backend="dense", seed=seed)
    sums = StatisticsAccumulator(clt.n_layers, clt.d_model)
    first = world.sample(8192, seed=10_000 + seed)
    sums.update(first.x, first.y)
    clt.normalize(sums.result())
    optimizer = AdamW(clt.parameters(), lr=lr)
    if prior is not None:
        prior.attach(clt)
    for step, batch in enumerate(world.batches(512, steps, seed)):
        rate = lr * min(1.0, 5 * (1 - step / steps))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        reconstruction_loss(batch.y, clt(batch.x).y_hat, clt.y_var, None).backward()
        optimizer.step()
        if prior is not None:
            prior.after_step(step, steps, rate)
    if prior is not None:
        prior.detach()
    return clt.eval()


@torch.no_grad()
def held_against(world: Planted, clt: CrossLayerTranscoder) -> Found:
    """FVU on fresh tokens; features are matched to the true ones by their decoders, one to one."""
    test = world.sample(8192, seed=999_983)
    rest = (clt(test.x).y_hat - test.y).square().sum((1, 2))
    fvu = float((rest / (test.y - test.y.mean(1, keepdim=True)).square().sum((1, 2))).mean())
    support = depth_support(clt)
    right, cosines = [], []
    for layer in range(world.n_layers):
        scales = clt.y_scale[layer:, None]
        mine = torch.nn.functional.normalize((clt.W_dec[layer] * scales).flatten(1), dim=1)
        true = torch.nn.functional.normalize(world.W_dec[layer].flatten(1), dim=1)
        cosine = (true @ mine.T).numpy()
        rows, columns = linear_sum_assignment(-cosine)
        cosines.append(cosine[rows, columns])
        near = cosines[-1] > MATCHED
        right.append((support.written[layer][columns[near]] == world.support[layer][rows[near]]).flatten().numpy())
    every = np.concatenate(cosines)
    return Found(
        fvu, float(np.concatenate(right).mean()), float((every > MATCHED).mean()), float(every.mean()), support.share
    )


def compare(seed: int, steps: int, n_features: int, k: int, baselines: bool = True) -> dict[str, Found]:
    """All ways in one world; without `baselines` the prior, the plain one and its cut alone."""
    world = Planted(seed=seed)

    def trained(prior: WeightPrior | None) -> CrossLayerTranscoder:
        return train(world, prior, steps, n_features, k, seed)

    made = {"plain": trained(None)}
    sparse = trained(SparseDecoding())
    share = depth_support(sparse).share
    made["plain, cut afterwards"] = copy.deepcopy(made["plain"])
    prune_groups(made["plain, cut afterwards"], keep=share)
    if baselines:
        made["cut at 60 %, refitted"] = trained(GroupPruning(keep=share, start=0.6, refit=0.4))
        made["cut from 30 to 60 %, refitted"] = trained(GroupPruning(keep=share))
        made["group L1"] = trained(GroupL1())
    made["sparse decoding"] = sparse
    return {name: held_against(world, clt) for name, clt in made.items()}


def main() -> None:
    """Prints a table of each world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="worlds (and initial weights)")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--n_features", type=int, default=48, help="of each layer; the world has 32")
    parser.add_argument("--k", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        found = compare(seed, options.steps, options.n_features, options.k)
        base = found["plain"].fvu
        columns = [
            Column("FVU", [f"{f.fvu:.3f}" for f in found.values()], 8),
            Column("to plain", [f"{100 * (f.fvu / base - 1):+.0f} %" for f in found.values()], 10),
            Column("support right", [f"{f.support:.3f}" for f in found.values()], 15),
            Column("matched", [f"{f.matched:.2f}" for f in found.values()], 9),
            Column("MCC", [f"{f.mcc:.3f}" for f in found.values()], 8),
            Column("groups", [f"{100 * f.groups:.0f} %" for f in found.values()], 8),
        ]
        print("\n".join(lay_out(Column(f"world {seed}", list(found)), columns, None)), flush=True)


if __name__ == "__main__":
    main()

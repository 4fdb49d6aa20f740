"""`python -m benchmarks.planted_anchors`: are features that write to one layer found again more surely than the others?

A planted world in which a third of the true features write to exactly one layer. Two seeds are trained on it with the
sparse-decoding prior, and two without. Features of the first that write to one layer (of those that could write to
several) are held against the others: the share that has a partner in the second seed (each other's nearest, both
cosines above .7), and the same against the true directions. Without the prior no group is zero: a feature's layers are
those of norm above a tenth of its largest.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from benchmarks.planted import true_transcoder
from benchmarks.planted_training import fit, normalise
from clt_lightning.analysis.matching import Side, match_features
from clt_lightning.analysis.stability.groups import Anchors, anchors_against_others
from clt_lightning.core.table import Column, lay_out
from clt_lightning.data import Planted
from clt_lightning.training.priors import SparseDecoding
from clt_lightning.transcoder import CrossLayerTranscoder, TopK

LEAST = 0.1  # of a feature's largest group, from which another one counts as written


@dataclass(frozen=True)
class Found:
    """What one way of training gives in a world.

    Attributes:
        name: of the way.
        seeds: anchors of the first seed against its others, found again in the second.
        truth: the same, found among the true features.
        fvu: of the first seed on fresh tokens, mean over layers.
    """

    name: str
    seeds: Anchors
    truth: Anchors
    fvu: float


def train(world: Planted, prior: bool, seed: int, steps: int, n_features: int, k: int) -> CrossLayerTranscoder:
    """A transcoder of the world's tokens."""
    clt = CrossLayerTranscoder(world.n_layers, world.d_model, n_features, TopK(k), backend="dense", seed=seed)
    first = world.sample(4096, seed=10_000 + seed)
    normalise(clt, first.x, first.y)
    batches = ((batch.x, batch.y, None) for batch in world.batches(256, steps, seed))
    return fit(clt, batches, steps, SparseDecoding() if prior else None)


@torch.no_grad()
def fvu(world: Planted, clt: CrossLayerTranscoder) -> float:
    """On fresh tokens, mean over layers."""
    test = world.sample(8192, seed=999_983)
    rest = (clt(test.x).y_hat - test.y).square().sum((1, 2))
    return float((rest / (test.y - test.y.mean(1, keepdim=True)).square().sum((1, 2))).mean())


def compare(seed: int, steps: int, n_features: int = 40, k: int = 4) -> list[Found]:
    """Both ways in one world."""
    world = Planted(3, 24, 32, anchors=1 / 3, support=0.6, rate=(0.02, 0.08), noise=0.02, seed=seed)
    rows = []
    for name, prior in (("plain", False), ("sparse decoding", True)):
        one, two = (train(world, prior, 100 * seed + i, steps, n_features, k) for i in (1, 2))
        sides: list[list[Side]] = [[m.a for m in match_features(one, b)] for b in (two, true_transcoder(world))]
        both = [anchors_against_others(one, side, least=LEAST) for side in sides]
        assert both[0] is not None
        assert both[1] is not None
        rows.append(Found(name, both[0], both[1], fvu(world, one)))
    return rows


def main() -> None:
    """Prints a table of each world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="worlds")
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        rows = compare(seed, options.steps)
        columns = [Column("FVU", [f"{row.fvu:.3f}" for row in rows], 8)]
        columns.append(Column("anchors", [str(row.seeds.anchors.features) for row in rows], 9))
        columns.append(Column("others", [str(row.seeds.others.features) for row in rows], 8))
        for title, name in (("found by the other seed", "seeds"), ("found in the truth", "truth")):
            of = [getattr(row, name) for row in rows]
            columns += [
                Column("anchors", [f"{a.anchors.kept / max(1, a.anchors.features):.2f}" for a in of], 9, group=title),
                Column("others", [f"{a.others.kept / max(1, a.others.features):.2f}" for a in of], 8, group=title),
                Column(
                    "difference",
                    [f"{a.difference.value:+.2f} ({a.difference.low:+.2f} {a.difference.high:+.2f})" for a in of],
                    22,
                    group=title,
                ),
            ]
        print("\n".join(lay_out(Column(f"world {seed}", [row.name for row in rows], left=True), columns, None)))


if __name__ == "__main__":
    main()

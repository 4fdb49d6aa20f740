"""Do two seeds agree where, and because, both found the truth? MCC to a planted world against PW-MCC between seeds.

    python -m benchmarks.planted

Each setting trains a few seeds on the same planted tensors. `truth` is the mean absolute correlation of codes with the
true ones on fresh tokens (best one-to-one matching); `seeds` the mean cosine of decoders and encoders, the smaller of
the two, between seeds, which needs no truth; the nulls are the same with a partner of no training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from clt_lightning.analysis.matching import match_features
from clt_lightning.analysis.stability import mean_correlation
from clt_lightning.core.table import Column, lay_out
from clt_lightning.data import Planted
from clt_lightning.transcoder import CrossLayerTranscoder, TopK


@dataclass(frozen=True)
class Setting:
    """A world and how long it is learned.

    Attributes:
        name: for the table.
        rate: share of the tokens at which a true feature is on.
        noise: standard deviation of the noise on every coordinate.
        steps: of training.
        k: active features per token.
        features: of the transcoder; None: as many as there are true ones.
    """

    name: str
    rate: float = 0.05
    noise: float = 0.0
    steps: int = 300
    k: int = 2
    features: int | None = None


#: Well learned to hardly learned
SETTINGS = (
    Setting("300 steps"),
    *(Setting(f"{steps} steps", steps=steps) for steps in (150, 75, 40, 20)),
)
#: Where the two part: codes are noisy and directions are not; what is on together is merged alike by every seed
PARTING = (
    Setting("noise 0.1", noise=0.1),
    Setting("noise 0.3", noise=0.3),
    Setting("on four times as often, k 2 as before", rate=0.2),
)


@dataclass(frozen=True)
class Found:
    """What a setting gives, means over seeds and over pairs of seeds.

    Attributes:
        truth: MCC of codes to the true ones.
        directions: PW-MCC of decoders with the true ones.
        seeds: PW-MCC between seeds, `both`.
        decoders: the same of decoders alone.
        null_truth: MCC of an untrained transcoder's codes to the true ones.
        null_seeds: PW-MCC of a trained one with random directions.
    """

    truth: float
    directions: float
    seeds: float
    decoders: float
    null_truth: float
    null_seeds: float


def train(world: Planted, setting: Setting, seed: int, tokens: int = 256, lr: float = 1e-2) -> CrossLayerTranscoder:
    """A cross-layer transcoder of a world; seed decides initial weights and tokens. `steps` 0: untrained."""
    n_features = setting.features or world.n_features
    clt = CrossLayerTranscoder(world.n_layers, world.d_model, n_features, TopK(setting.k), seed=seed)
    optimizer = torch.optim.Adam(clt.parameters(), lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(setting.steps, 1))
    for batch in world.batches(tokens, setting.steps, seed=1000 + seed):
        optimizer.zero_grad()
        (clt(batch.x).y_hat - batch.y).square().sum((0, 2)).mean().backward()
        optimizer.step()
        schedule.step()
    return clt.eval()


def true_transcoder(world: Planted) -> CrossLayerTranscoder:
    """The world's own directions as a transcoder."""
    clt = CrossLayerTranscoder(world.n_layers, world.d_model, world.n_features, TopK(1))
    with torch.no_grad():
        for layer in range(world.n_layers):
            clt.W_enc[layer].copy_(world.W_enc[layer])
            clt.W_dec[layer].copy_(world.W_dec[layer])
    return clt


def measure(
    setting: Setting, seeds: int = 2, n_layers: int = 2, d_model: int = 24, n_features: int = 32, tokens: int = 2000
) -> Found:
    """Trains the seeds of a setting and compares them with the truth and with each other."""
    world = Planted(n_layers, d_model, n_features, rate=setting.rate, noise=setting.noise, carry=0.5)
    fresh = world.sample(tokens, seed=77)
    trained = [train(world, setting, seed) for seed in range(seeds)]
    untrained = train(world, Setting("untrained", steps=0, k=setting.k, features=setting.features), seed=50)
    with torch.no_grad():
        truth, chance = (
            [mean_correlation(clt.encode(fresh.x).dense(), fresh.codes) for clt in some]
            for some in (trained, [untrained])
        )
    pairs = [layer for a, b in combinations(trained, 2) for layer in match_features(a, b)]
    known = [layer for clt in trained for layer in match_features(clt, true_transcoder(world))]
    return Found(
        truth=sum(truth) / len(truth),
        directions=sum(layer.mcc["decoder"] for layer in known) / len(known),
        seeds=sum(layer.mcc["both"] for layer in pairs) / len(pairs),
        decoders=sum(layer.mcc["decoder"] for layer in pairs) / len(pairs),
        null_truth=chance[0],
        null_seeds=sum(layer.null["mcc"]["untrained"]["both"] for layer in pairs) / len(pairs),
    )


def table(settings: Sequence[Setting], found: Sequence[Found]) -> list[str]:
    """The lines of the table."""
    columns = [
        Column(title, [f"{getattr(f, name):.3f}" for f in found], 10)
        for title, name in (
            ("codes", "truth"),
            ("decoders", "directions"),
            ("seeds, both", "seeds"),
            ("decoders", "decoders"),
            ("null truth", "null_truth"),
            ("null seeds", "null_seeds"),
        )
    ]
    return lay_out(Column("setting", [s.name for s in settings], left=True), columns)


def main() -> None:
    """Prints the table of all settings."""
    started = time.perf_counter()
    settings = (*SETTINGS, *PARTING)
    found = [measure(setting, seeds=4) for setting in settings]
    print("\n".join(table(settings, found)))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

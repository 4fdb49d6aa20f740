"""`python -m benchmarks.priors`: what features that write to few layers cost on the demo, by the way they are found.

The quickstart's recipe in fewer steps, with the decoder's groups brought to one share by each way: the sparse-decoding
prior and group L1 of one rate, both until so few are left; pruning to as many, while training goes on and after it.
Figures are of held-out images, those of the cascade (all MLPs replaced at all tokens) paired with the plain run's of
the same seed; intervals are 95 %, bootstrap over images and seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import silent_trainer
from benchmarks.recipes import CASCADE, World, build
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.losses.base import LossTerm
from clt_lightning.training.priors import GroupL1, GroupPruning, SparseDecoding
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.support import depth_support, prune_groups


@dataclass
class Measured:
    """One transcoder on the held-out images.

    Attributes:
        groups: mean number of layers that a feature writes to.
        share: of all groups, those that are there.
        fvu: mean over layers.
        l0: codes per token and layer.
        right: by image, whether the class is right with all MLPs replaced.
        kl: by image, of the class probabilities from the original's, in nats.
        reads: groups of the decoder that an image's codes read, mean over images: one for each active code and layer
            that its feature writes to.
    """

    groups: float
    share: float
    fvu: float
    l0: float
    right: list[bool]
    kl: list[float]
    reads: float


@torch.no_grad()
def measure(clt: CrossLayerTranscoder, world: World, batch: int = 250) -> Measured:
    """Holds a transcoder against the untouched CLIP on the world's held-out images."""
    clip, images, labels = world.clip, world.test.images, world.test.labels
    head = clip.head_for(world.classnames or [], world.templates or [])
    support = depth_support(clt)
    written = [there.float().sum(1) for there in support.written]
    error, codes, reads = torch.zeros(clt.n_layers), 0.0, 0.0
    square, total = torch.zeros(clt.n_layers, dtype=torch.float64), torch.zeros(clt.n_layers, clt.d_out)
    tokens, right, kl = 0, [], []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        acts = clip.capture(part)
        out = clt(acts.x)
        error += (out.y_hat - acts.y).square().sum((1, 2))
        square += acts.y.double().square().sum((1, 2))
        total += acts.y.sum(1)
        tokens += acts.y.shape[1]
        codes += float(out.codes.l0().sum())
        for layer in range(clt.n_layers):
            pairs, _ = out.codes.layer(layer)
            reads += float(written[layer][pairs.features].sum())
        before = clip.logits(clip.encode_image(part), head).log_softmax(1)
        with replaced(clip, clt):
            after = clip.logits(clip.encode_image(part), head).log_softmax(1)
        right += (after.argmax(1) == labels[start : start + batch]).tolist()
        kl += (before.exp() * (before - after)).sum(1).tolist()
    spread = square - total.double().square().sum(1) / tokens
    fvu = float((error.double() / spread).mean())
    return Measured(
        support.mean_groups, support.share, fvu, codes / tokens / clt.n_layers, right, kl, reads / len(images)
    )


def train(extra: list[LossTerm], seed: int, options: argparse.Namespace, world: World) -> CrossLayerTranscoder:
    """The quickstart's recipe with a prior."""
    recipe = {"batch": 32, "cascade": CASCADE | {"images": 32}, "extra": extra}
    module = build(recipe, options.k, seed, options, world)
    world.seed, world.batch_size = seed, 32
    silent_trainer(options.steps, gradient_clip_val=1.0).fit(module, datamodule=world)
    clt: CrossLayerTranscoder = module.transcoder
    return clt.eval()


class Cache:
    """Trained transcoders and what was measured of them, by name and seed, in a folder."""

    def __init__(self, folder: Path, options: argparse.Namespace, world: World) -> None:
        self.folder, self.options, self.world = folder, options, world

    def transcoder(self, name: str, seed: int, extra: list[LossTerm]) -> CrossLayerTranscoder:
        """One that is trained with some terms, or was."""
        place = self.folder / f"{name}-{seed}"
        if not (place / "config.json").is_file():
            print(f"training {name}, seed {seed}", flush=True)
            train(extra, seed, self.options, self.world).save_pretrained(place)
        return CrossLayerTranscoder.from_pretrained(place)

    def measured(self, name: str, seed: int, clt: CrossLayerTranscoder) -> Measured:
        """What is measured of a transcoder, or was."""
        path = self.folder / f"{name}-{seed}.json"
        if not path.is_file():
            path.write_text(json.dumps(asdict(measure(clt, self.world))))
        found = Measured(**json.loads(path.read_text()))
        print(
            f"  {name}, seed {seed}: groups {found.groups:.3f} ({found.share:.3f}) FVU {found.fvu:.4f} right "
            f"{100 * np.mean(found.right):.2f} KL {np.mean(found.kl):.4f} L0 {found.l0:.2f} reads {found.reads:.0f}",
            flush=True,
        )
        return found


def paired(values: list[np.ndarray], draws: int = 1000) -> str:
    """Mean over seeds of means over images, with its 95 % interval: both are drawn anew."""
    rng = np.random.default_rng(0)
    n = len(values[0])
    means = []
    for _ in range(draws):
        images = rng.integers(0, n, n)  # the same pictures for every seed
        means.append(np.mean([values[s][images].mean() for s in rng.integers(0, len(values), len(values))]))
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{np.mean(values):+.2f} ({low:+.2f} to {high:+.2f})"


def table(rows: dict[str, list[Measured]]) -> list[str]:
    """The lines of the table: means over seeds; the cascade and FVU against the plain run of the same seed."""
    out = [
        "| how | groups per feature | FVU | against plain | points lost more | KL | KL more | L0 | groups read |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    plain = rows["plain"]
    for name, found in rows.items():
        ratio = [100 * (f.fvu / p.fvu - 1) for f, p in zip(found, plain)]
        points = [100 * (np.asarray(p.right, float) - np.asarray(f.right, float)) for f, p in zip(found, plain)]
        kl = [np.asarray(f.kl) - np.asarray(p.kl) for f, p in zip(found, plain)]
        cells = [
            f"{np.mean([f.groups for f in found]):.2f}",
            f"{np.mean([f.fvu for f in found]):.4f}",
            f"{np.mean(ratio):+.0f} % ({min(ratio):+.0f} to {max(ratio):+.0f})",
            "" if found is plain else paired(points),
            f"{np.mean([np.mean(f.kl) for f in found]):.3f}",
            "" if found is plain else paired(kl),
            f"{np.mean([f.l0 for f in found]):.2f}",
            f"{np.mean([f.reads for f in found]):,.0f}",
        ]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return out


def main() -> None:
    """Trains what is not in the cache, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/demo", help="where the renders go")
    parser.add_argument("--cache", default="build/priors", help="where transcoders and figures are kept, and found")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--keep", type=float, default=0.5, help="share of all groups that every way leaves")
    parser.add_argument("--steps", type=int, default=300, help="of 32 images")
    parser.add_argument("--n_train", type=int, default=6000)
    parser.add_argument("--n_test", type=int, default=3000)
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--lr", type=float, default=8e-3)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = Path(options.cache)
    folder.mkdir(parents=True, exist_ok=True)
    cache = Cache(folder, options, World("demo", options.root, options.n_train, options.n_test))
    keep = options.keep
    ways: dict[str, list[LossTerm]] = {
        "sparse decoding": [SparseDecoding(lambda1=0.1, start=0.4, warmup_fraction=0.3, refit=0.3, until=keep)],
        "group L1": [GroupL1(coefficient=0.1, until=keep, warmup_fraction=0.3)],
        "pruned while training": [GroupPruning(keep=keep)],
    }
    rows: dict[str, list[Measured]] = {}
    for seed in options.seeds:
        plain = cache.transcoder("plain", seed, [])
        rows.setdefault("plain", []).append(cache.measured("plain", seed, plain))
        cut = copy.deepcopy(plain)
        prune_groups(cut, keep=keep)
        rows.setdefault("pruned afterwards", []).append(cache.measured(f"cut-{keep:g}", seed, cut))
        for name, extra in ways.items():
            key = f"{name.replace(' ', '-')}-{keep:g}"
            clt = cache.transcoder(key, seed, copy.deepcopy(extra))
            rows.setdefault(name, []).append(cache.measured(key, seed, clt))
    print("\n" + "\n".join(table(rows)))


if __name__ == "__main__":
    main()

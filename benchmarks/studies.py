"""`python -m benchmarks.studies`: does use tell one study's own features from those that two studies share?

Two studies of the demo's world have the same shapes, and differ in one factor: the background (sand or water), the
objects' colours (warm or cold), or their texture. A feature's true kind is measured on twins, renders in no split that
are equal but for that factor: the feature is specific where its firing shares most information with the factor, shared
where it shares most with the object's shape (or colour, where both studies have all colours); one that goes with none
has no kind. Use is that on the studies' own test images, as of the command `studies`: what the study explains of it
(`StudyUse.explained`), the entropy of its rates, and that of the codes' strength.

Each seed trains four transcoders: on both studies, on both with the prior on use (`MultiStudy`), and on each alone, all
of as many steps. Intervals are 95 %: of an AUC bootstrap over features, over seeds Student's t.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.common import silent_trainer
from benchmarks.recipes import NONE, build, interval
from clt_lightning.analysis.matching import STATES, match_features
from clt_lightning.analysis.studies import StudyUse, study_use
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.progress import track
from clt_lightning.data import Studies
from clt_lightning.data.worlds.renders import COLOURS, SHAPES, render
from clt_lightning.training.losses.base import LossTerm
from clt_lightning.training.priors import MultiStudy
from clt_lightning.transcoder import CrossLayerTranscoder

WORLD = 77_000_000  # of the twins, which are in no split
LEVEL = 1e-4  # p-value of a factor from which a feature goes with it
CLEAR, TWICE = 0.005, 2.0  # its kind is clear from so many nats on, and so many times what the next factor has
WARM, COLD = ("red", "orange", "yellow", "pink"), ("green", "cyan", "blue", "purple")
#: The two studies of each world by name: what the data set `Demo` is told
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "background": {"sand": {"background": "sand"}, "water": {"background": "water"}},
    "colours": {"warm": {"colours": list(WARM)}, "cold": {"colours": list(COLD)}},
    "texture": {"striped": {"texture": "striped"}, "dotted": {"texture": "dotted"}},
}


@dataclass(frozen=True)
class Kinds:
    """Which factor each feature goes with.

    Attributes:
        information: `(L, F, factors)` nats between a feature's firing on an image and each factor, without what
            independent ones would have.
        best: `(L, F)` index of the factor with most; -1: none, or too little to tell.
    """

    information: np.ndarray
    best: np.ndarray

    @property
    def clear(self) -> np.ndarray:
        """`(L, F)` bool: features that go with one factor, and far less with the next."""
        second, first = np.moveaxis(np.sort(self.information, -1)[..., -2:], -1, 0)
        result: np.ndarray = (self.best >= 0) & (first > CLEAR) & (first > TWICE * np.maximum(second, 0))
        return result


def information(fires: np.ndarray, factor: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information between whether a feature fires and a factor, less its bias; and the p-value of "none".

    Args:
        fires: `(images, features)` bool.
        factor: `(images,)` int, 0 to `levels` - 1.
        levels: of the factor.

    Returns:
        each `(features,)`; information in nats (Miller and Madow's bias taken off), p of the likelihood-ratio test.
    """
    n = len(fires)
    on = np.stack([fires[factor == level].sum(0) for level in range(levels)])
    counts = np.stack([on, np.bincount(factor, minlength=levels)[:, None] - on]) / n  # (2, levels, features)
    expected = counts.sum(0, keepdims=True) * counts.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(counts > 0, counts * np.log(counts / expected), 0.0).sum((0, 1))
    return found - (levels - 1) / (2 * n), stats.chi2.sf(2 * n * found, levels - 1)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; ties count half."""
    ranks = stats.rankdata(scores)
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def auc_interval(scores: np.ndarray, positive: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC, over features."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(scores), len(scores)) for _ in range(resamples))
    low, high = np.nanquantile([auc(scores[draw], positive[draw]) for draw in draws], (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True)
class Twins:
    """Pictures in pairs that are equal but for what two studies differ in.

    Attributes:
        images: preprocessed.
        factors: `(pictures,)` of each factor, the studies' first.
        levels: of each factor.
    """

    images: torch.Tensor
    factors: dict[str, np.ndarray]
    levels: dict[str, int]


def twins(world: str, pairs: int, clip: FrozenCLIP) -> Twins:
    """Renders that are in no split: pair i, of the first study and then of the second."""
    pictures, found = [], []
    names = list(COLOURS)
    for index in track(range(pairs), "twins", unit="pairs"):
        drawn = render(WORLD, index).label
        for study in (0, 1):
            if world == "colours":
                colour = names.index((WARM, COLD)[study][drawn % 4])
                made = render(WORLD, index, label=drawn // len(COLOURS) * len(COLOURS) + colour)
            else:
                made = render(WORLD, index, cue=(world, study))
            pictures.append(clip.preprocess(made.image))
            found.append((study, made.label // len(COLOURS), made.label % len(COLOURS)))
    study, shape, colour = np.asarray(found).T
    factors, levels = {"study": study, "shape": shape}, {"study": 2, "shape": len(SHAPES)}
    if world != "colours":  # where it is what the studies differ in
        factors["colour"], levels["colour"] = colour, len(COLOURS)
    return Twins(torch.stack(pictures), factors, levels)


@torch.no_grad()
def true_kinds(clip: FrozenCLIP, clt: CrossLayerTranscoder, given: Twins, batch: int = 100) -> Kinds:
    """Which factor each feature goes with."""
    fires = np.zeros((clt.n_layers, len(given.images), clt.n_features), bool)
    for start in range(0, len(given.images), batch):
        part = given.images[start : start + batch]
        codes = clt(clip.capture(part).x).codes.dense()
        on = (codes != 0).view(clt.n_layers, len(part), -1, clt.n_features).any(2)
        fires[:, start : start + len(part)] = on.numpy()
    found = [[information(layer, given.factors[name], n) for name, n in given.levels.items()] for layer in fires]
    nats = np.stack([np.stack([value for value, _ in layer], -1) for layer in found])
    p = np.stack([np.stack([value for _, value in layer], -1) for layer in found])
    best = nats.argmax(-1)
    clear = np.take_along_axis(p, best[..., None], -1)[..., 0] < LEVEL
    return Kinds(nats, np.where(clear, best, -1))


def scores(use: StudyUse) -> dict[str, np.ndarray]:
    """By measure, `(L, F)`: the higher, the more a feature is one study's own; NaN where it fired nowhere."""
    fired = use.counts.sum(-1) > 0
    explained = np.where(fired, np.nan_to_num(use.explained), np.nan)  # on in all images: nothing to explain
    return {"explained": explained, "entropy": 1 - use.entropy, "strength": 1 - use.strength_entropy}


def report(use: StudyUse, kinds: Kinds) -> list[str]:
    """The lines of the measurement."""
    scores_of, best = scores(use)["explained"], kinds.best
    out = ["layer  specific  shared  neither   AUC"]
    layers = [*range(len(best)), None]
    for layer in layers:
        at = (slice(None) if layer is None else slice(layer, layer + 1),)
        used = np.isfinite(scores_of[at])
        known = (best[at] >= 0) & used
        specific, found = (best[at] == 0)[known], scores_of[at][known]
        neither = int((used & ~known).sum())
        line = f"{'all' if layer is None else layer!s:<5}  {int(specific.sum()):8,}  {int((~specific).sum()):6,}"
        line += f"  {neither:7,}  {auc(found, specific):.3f}"
        if layer is None:
            line += "  ({:.3f} .. {:.3f})".format(*auc_interval(found, specific))
        out.append(line)
    return out


def data_of(world: str, root: str, sets: list[str], options: argparse.Namespace) -> Studies | Any:
    """The studies of a world, or one of them, of renders that the two do not have in common."""
    made = {}
    for number, (name, told) in enumerate(STUDIES[world].items()):
        sizes = {"n_train": options.n_train, "n_val": 1, "n_test": options.n_test, "world": 100 + number}
        made[name] = {"class_path": "Demo", "init_args": {"root": f"{root}/{name}", **sizes, **told}}
    every = Studies(made, batch_size=32, num_workers=0, seed=0)
    return every if len(sets) > 1 else every.sets[sets[0]]


def train(
    world: str, sets: list[str], extra: list[LossTerm], seed: int, options: argparse.Namespace, clip: FrozenCLIP
) -> CrossLayerTranscoder:
    """The quickstart's recipe without the cascade's terms."""
    data = data_of(world, options.root, sets, options)
    data.seed, data.batch_size = seed, 32
    for one in getattr(data, "sets", {}).values():
        one.seed = seed
    recipe = {"cascade": NONE, "extra": extra}
    backbone: Any = argparse.Namespace(clip=clip, n_layers=clip.n_layers)  # what `build` reads of a world
    module = build(recipe, options.k, seed, options, backbone)
    silent_trainer(options.steps, gradient_clip_val=1.0).fit(module, datamodule=data)
    clt: CrossLayerTranscoder = module.transcoder
    return clt.eval()


def found_again(folders: list[Path], kinds: dict[str, np.ndarray], title: str) -> str:
    """A line: which features of the first transcoder the second one has, by their true kind in the first."""
    first, second = (CrossLayerTranscoder.from_pretrained(folder) for folder in folders)
    state = np.stack([layer.a.state for layer in match_features(first, second)])
    kept, living = state == STATES.index("kept"), state != STATES.index("dead")
    cells = [f"{100 * kept[living].mean():.1f} % of {living.sum():,}"]
    for there in kinds.values():
        n = int((there & living).sum())
        cells.append(f"{100 * kept[there & living].mean():.1f} % of {n:,}" if n else "none")
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    """Prints, for each way and seed, the AUC by layer, the kinds, FVU and L0 of each set; then means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(STUDIES), default="background")
    parser.add_argument("--root", default="data/studies", help="where the renders go")
    parser.add_argument("--cache", default="build/studies", help="where transcoders and figures are kept, and found")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--coefficient", type=float, default=MultiStudy.coefficient, help="of the prior on use")
    parser.add_argument("--steps", type=int, default=250, help="of 32 images")
    parser.add_argument("--n_train", type=int, default=4000, help="renders of each set")
    parser.add_argument("--n_test", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=1000, help="of twins")
    parser.add_argument("--skip", nargs="+", default=[], help="ways that are not trained")
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--lr", type=float, default=8e-3)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options.root = f"{options.root}/{options.world}"
    names = list(STUDIES[options.world])
    clip = FrozenCLIP(pretrained="demo")
    data = data_of(options.world, options.root, names, options)
    data.transform = clip.preprocess
    data.setup("test")
    pictures = twins(options.world, options.pairs, clip)
    prior = f"prior {options.coefficient:g}"
    ways: dict[str, list[str]] = {"plain": names, prior: names, **{f"{name} alone": [name] for name in names}}
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for way, sets in ways.items():
            if way.split()[0] in options.skip or way in options.skip:
                continue
            place = Path(options.cache) / f"{options.world}-{way.replace(' ', '-')}-{seed}"
            if not (place / "config.json").is_file():
                print(f"training {way}, seed {seed}", flush=True)
                extra: list[LossTerm] = [MultiStudy(options.coefficient)] if way == prior else []
                train(options.world, sets, extra, seed, options, clip).save_pretrained(place)
            if not (place / "figures.json").is_file():
                clt = CrossLayerTranscoder.from_pretrained(place)
                use = study_use(clip, clt, data.eval_dataloader("test"), data.names)
                kinds = true_kinds(clip, clt, pictures)
                ranked = scores(use)
                known = (kinds.best >= 0) & np.isfinite(use.entropy)
                specific = kinds.best[known] == 0
                clear = known & kinds.clear
                print(f"\n{way}, seed {seed}", *report(use, kinds), sep="\n", flush=True)
                table = use.table()["kinds"]
                figures = {
                    **{name: auc(values[known], specific) for name, values in ranked.items()},
                    "clear": auc(ranked["explained"][clear], kinds.best[clear] == 0),
                    "specific": int(specific.sum()),
                    "shared": int((~specific).sum()),
                    "kinds": {kind: sum(counts) for kind, counts in table.items()},
                    "fvu": use.fvu.mean(1).tolist(),
                    "l0": use.l0.mean(1).tolist(),
                }
                (place / "figures.json").write_text(json.dumps(figures))
                np.save(place / "best.npy", kinds.best)
            rows.setdefault(way, []).append(json.loads((place / "figures.json").read_text()))
    heads = [
        "AUC of what is explained",
        "where clear",
        "of entropy of use",
        "of strength",
        "specific",
        "shared",
        "found specific",
        *(f"FVU {n}" for n in names),
        *(f"L0 {n}" for n in names),
    ]
    print(f"\n| trained on | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for way, found in rows.items():
        cells = [
            *(interval([f[key] for f in found], 3) for key in ("explained", "clear", "entropy", "strength")),
            *(f"{np.mean([f[key] for f in found]):,.0f}" for key in ("specific", "shared")),
            f"{np.mean([f['kinds']['specific'] for f in found]):,.0f}",
            *(interval([f["fvu"][i] for f in found], 4) for i in range(2)),
            *(interval([f["l0"][i] for f in found], 2) for i in range(2)),
        ]
        print(f"| {way} | {' | '.join(cells)} |")
    print("\n| features found again, in | all | specific | shared |\n|---|---|---|---|")
    places = {way: Path(options.cache) / f"{options.world}-{way.replace(' ', '-')}" for way in rows}
    alone = [way for way in rows if way.endswith(" alone")]
    for way in ("plain", *alone):
        if way not in rows:
            continue
        own = [Path(f"{places[way]}-{seed}") for seed in options.seeds]
        best = np.load(own[0] / "best.npy")
        kinds_of = {"specific": best == 0, "shared": best > 0}
        if len(own) > 1:
            print(found_again(own[:2], kinds_of, f"{way}, of another seed"))
        for other in alone:
            if other != way and way in alone:
                across = Path(f"{places[other]}-{options.seeds[0]}")
                print(found_again([own[0], across], kinds_of, f"{way}, of {other}"))


if __name__ == "__main__":
    main()

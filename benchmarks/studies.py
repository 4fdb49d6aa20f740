"""Does entropy of use tell the features of one study from those that two studies share?

    python -m benchmarks.studies --run runs/studies

Two studies of the demo's world have the same shapes and colours; what is specific is the objects' texture. A feature's
true kind is the factor with which its firing shares most information, on renders that are in no split: texture makes it
specific, shape or colour shared; features that go with none of them have no kind. Entropy of use is that of the test
split, as of the command `studies`. `--apart NAME=RUN` puts a transcoder beside it that was trained on that set alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from clt_lightning.analysis.run import Run, open_run
from clt_lightning.analysis.studies import StudyUse, study_use
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.data import Studies
from clt_lightning.data.worlds.renders import COLOURS, SHAPES, TEXTURES, render

FACTORS = ("texture", "shape", "colour")
WORLD = 77_000_000  # of renders that are in no split
LEVEL = 1e-4  # p-value of a factor from which a feature goes with it


@dataclass(frozen=True)
class Kinds:
    """Which factor each feature goes with.

    Attributes:
        information: `(L, F, factors)` nats between a feature's firing on an image and each of `FACTORS`, without what
            independent ones would have.
        best: `(L, F)` index of the factor with most; -1: none, or too little to tell.
    """

    information: np.ndarray
    best: np.ndarray


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


@torch.no_grad()
def true_kinds(run: Run, images: int, batch: int = 50) -> Kinds:
    """Which factor each feature goes with, on fresh renders, half of them of each texture."""
    clt = run.transcoder
    blocks = clt.sites.resolve(run.clip.n_layers, run.clip.name)
    factors: dict[str, list[int]] = {name: [] for name in FACTORS}
    fires = np.zeros((clt.n_layers, images, clt.n_features), bool)
    for start in track(range(0, images, batch), "fresh renders", unit="batches"):
        pictures = []
        numbers = range(start, min(images, start + batch))
        for index in numbers:
            made = render(WORLD, index, cue=("texture", index % 2))
            pictures.append(run.clip.preprocess(made.image))
            for name, level in zip(FACTORS, (index % 2, made.label // len(COLOURS), made.label % len(COLOURS))):
                factors[name].append(level)
        acts = run.clip.capture(torch.stack(pictures), blocks, sites=(str(clt.sites.read), str(clt.sites.write)))
        codes = clt.gather_codes(clt(acts.x).codes).dense()
        on = (codes != 0).view(clt.n_layers, len(pictures), -1, clt.n_features).any(2)
        fires[:, start : start + len(pictures)] = on.cpu().numpy()
    levels = (2, len(SHAPES), len(COLOURS))
    found = [[information(layer, np.asarray(factors[name]), n) for name, n in zip(FACTORS, levels)] for layer in fires]
    nats = np.stack([np.stack([value for value, _ in layer], -1) for layer in found])
    p = np.stack([np.stack([value for _, value in layer], -1) for layer in found])
    best = nats.argmax(-1)
    clear = np.take_along_axis(p, best[..., None], -1)[..., 0] < LEVEL
    return Kinds(nats, np.where(clear, best, -1))


def report(use: StudyUse, kinds: Kinds) -> list[str]:
    """The lines of the measurement."""
    entropy, best = use.entropy, kinds.best
    out = ["layer  specific  shared  neither   AUC"]
    layers = [*range(len(best)), None]
    for layer in layers:
        at = (slice(None) if layer is None else slice(layer, layer + 1),)
        known = (best[at] >= 0) & np.isfinite(entropy[at])
        specific = (best[at] == 0)[known]
        scores = 1 - entropy[at][known]
        neither = int((np.isfinite(entropy[at]) & ~known).sum())
        line = f"{'all' if layer is None else layer!s:<5}  {int(specific.sum()):8,}  {int((~specific).sum()):6,}"
        line += f"  {neither:7,}  {auc(scores, specific):.3f}"
        if layer is None:
            line += "  ({:.3f} .. {:.3f})".format(*auc_interval(scores, specific))
        out.append(line)
    return out


def main() -> None:
    """Prints AUC by layer and FVU by set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--apart", action="append", default=[], metavar="NAME=RUN")
    parser.add_argument("--images", type=int, default=2000, help="fresh renders (default: 2000)")
    args = parser.parse_args()
    run = open_run(args.run)
    data = run.datamodule
    textures = [getattr(one, "texture", None) for one in data.sets.values()] if isinstance(data, Studies) else []
    if textures != list(TEXTURES[1:3]):
        raise UserError(f"--run {args.run}: trained on other data than configs/data/studies.yaml")
    data.setup("test")
    use = study_use(run.clip, run.transcoder, data.eval_dataloader("test"), data.names, progress=True)
    print("\n".join(report(use, true_kinds(run, args.images))))
    print("\nheld-out FVU, mean over layers; L0")
    rows = {"together": use}
    for entry in args.apart:
        name, _, folder = entry.partition("=")
        other = open_run(folder)
        rows[f"{name} alone"] = study_use(
            run.clip, other.transcoder, data.eval_dataloader("test"), data.names, progress=True
        )
    for title, found in rows.items():
        cells = (f"{n}: {f.mean():.4f} ({k.mean():.2f})" for n, f, k in zip(found.names, found.fvu, found.l0))
        print(f"{title:<16} {'  '.join(cells)}")


if __name__ == "__main__":
    main()

"""What a cross-layer transcoder says of one image. Read it from top to bottom like a notebook, or run it:

    python examples/explain_one_image.py                  # the newest run of the quickstart, or a brief training
    python examples/explain_one_image.py --run runs/vitb32/version_0 --image 12

It prints the classes that the original and the replaced CLIP see, the strongest features of each layer, what adds how
much to the class logit, and the images nearest by sparse code. Under a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import clt_lightning as cl
from clt_lightning.analysis import (
    Decomposition,
    ImageExplanation,
    RetrievalCollector,
    Run,
    explain_image,
    load_features,
    open_run,
)
from clt_lightning.transcoder import StatisticsAccumulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run's folder; default: the newest one of the quickstart, if any")
    parser.add_argument("--image", type=int, default=0, help="which image of the test split")
    parser.add_argument("--features", type=int, default=4, help="features shown of each layer")
    parser.add_argument("--steps", type=int, default=150, help="training steps where there is no run")
    parser.add_argument("--data", default="data/demo", help="the demo's tars, made there where no run says otherwise")
    args = parser.parse_args()

    # 1. A backbone, a transcoder and data: of a run, or trained here for some seconds
    run = open_run(args.run) if args.run else newest_quickstart() or brief_training(args.data, args.steps)
    clip, clt, head = run.clip, run.transcoder, run.head
    assert head is not None, "the data has no class names"
    classnames = run.datamodule.classnames

    # 2. Some images of the test split
    images, keys, labels = [], [], []
    for batch in run.batches("test", limit=256):
        images.append(batch["image"])
        keys += batch["key"]
        labels += batch["label"].tolist()
    image = torch.cat(images)[args.image]
    print(f"image {keys[args.image]}, a {classnames[labels[args.image]]}\n")

    # 3. The explanation: every number of it is in this object
    found = explain_image(clip, clt, image, head, classnames, n_features=args.features)
    show_classes(found)
    show_features(found, names_of_features(run))
    show_decomposition("the untouched CLIP", found.original)
    show_decomposition("all MLPs replaced, cascaded", found.replaced)

    # 4. The images that are alike to each layer
    collector, start = RetrievalCollector(clt.n_features), 0
    for part in images:
        acts = clip.capture(part)
        codes = clt.encode(acts.y if clt.topology == "sae" else acts.x)
        collector.update(codes, keys[start : start + len(part)], torch.tensor(labels[start : start + len(part)]))
        start += len(part)
    index = collector.result()
    print("nearest by sparse code")
    for layer in range(clt.n_layers):
        nearest, cosines = index.nearest(index.keys.index(keys[args.image]), layer, k=3)
        shown = ", ".join(f"{classnames[index.labels[i]]} ({c:.2f})" for i, c in zip(nearest, cosines))
        print(f"  layer {layer}: {shown}")


def newest_quickstart() -> Run | None:
    """The newest run of the quickstart that has finished; None without."""
    try:
        run = open_run("runs/quickstart")
    except cl.UserError:
        return None
    print(f"run: {run.folder}")
    return run


def brief_training(root: str, steps: int) -> Run:
    """A transcoder for the demo's CLIP after a few seconds: far from good, enough to look at."""
    clip = cl.FrozenCLIP(pretrained="demo")
    data = cl.data.Demo(root=root, n_train=min(2000, 32 * steps), n_test=256, batch_size=32)
    data.transform = clip.preprocess
    data.setup("test")
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 4 * clip.d_model, cl.TopK(16), seed=0)
    optimizer = torch.optim.AdamW(clt.parameters(), lr=4e-3, weight_decay=0.0)
    statistics = StatisticsAccumulator(clip.n_layers, clip.d_model, torch.device("cpu"))
    print(f"no run given: training for {steps} steps on {len(data.classnames or [])} classes of renders")
    for step, batch in zip(range(steps), data.train_dataloader()):
        acts = clip.capture(batch["image"])
        if step < 4:
            statistics.update(acts.x, acts.y)
            continue
        if step == 4:
            clt.normalize(statistics.result())
        error = (clt(acts.x).y_hat - acts.y).square().sum((1, 2)) / acts.y.sub(
            acts.y.mean(1, keepdim=True)
        ).square().sum((1, 2))
        error.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"fraction of variance unexplained in the last step, mean over layers: {float(error.detach().mean()):.3f}\n")
    return Run(Path(), clip, clt.eval(), data, {})


def names_of_features(run: Run) -> dict[tuple[int, int], str]:
    """What a finished `test` has found the features to respond to; empty without."""
    if not (run.folder / "features" / "features.json").is_file():
        return {}
    known = load_features(run.folder)
    classes, index = known.info["classnames"], known.stats["class_index"]
    return {
        (layer, f): classes[index[layer, f, 0]]
        for layer in range(index.shape[0])
        for f in range(index.shape[1])
        if index[layer, f, 0] >= 0
    }


def show_classes(found: ImageExplanation) -> None:
    print(f"{'class':<20} {'original':>16} {'replaced':>16}   (logit, probability)")
    for c in found.classes:
        print(f"{c.name:<20} {c.original:8.2f} {c.p_original:6.1%} {c.replaced:9.2f} {c.p_replaced:6.1%}")
    print()


def show_features(found: ImageExplanation, names: dict[tuple[int, int], str]) -> None:
    print("strongest features: code at [row, column] of the patches")
    for layer, features in enumerate(found.top_features):
        shown = []
        for f in features:
            row, column = divmod(f.position - 1, found.grid[1])
            place = "[CLS]" if f.position == 0 else f"[{row}, {column}]"
            name = f" {names[layer, f.feature]}" if (layer, f.feature) in names else ""
            shown.append(f"#{f.feature}{name} {f.value:.2f} at {place}")
        print(f"  layer {layer}: {'; '.join(shown)}")
    print()


def show_decomposition(title: str, found: Decomposition) -> None:
    layers = range(len(found.attention))
    print(f"{title}: logit {found.logit:.4f} = sum of the terms {found.sum:.4f}")
    print(f"  embedding {found.embedding:+.2f}, last LayerNorm's bias {found.norm_bias:+.2f}")
    print("  layer  attention  features from layer " + " ".join(f"{i:>6}" for i in layers) + "    bias   skip  error")
    for j in layers:
        written = " ".join(f"{found.features[i, j]:6.2f}" if i <= j else "     ." for i in layers)
        rest = f"{found.bias[j]:6.2f} {found.skip[j]:6.2f} {found.error[j]:6.2f}"
        print(f"  {j:>5} {found.attention[j]:10.2f} {'':>20} {written}  {rest}")
    print()


if __name__ == "__main__":
    main()

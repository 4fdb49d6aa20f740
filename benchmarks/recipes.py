"""`python -m benchmarks.recipes`: what each training option gives for the cascade, over seeds, on two worlds.

All recipes have the same L0, steps, tokens and features. The loss of zero-shot accuracy with every MLP replaced at all
tokens is measured on held-out images, in points; intervals are 95 % over seeds (Student's t). `--world demo` is the
embedded demo; `--world photos` takes a folder with `clip/open_clip_model.safetensors` and `data/` (WebDataset tars).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import lightning
import torch

from benchmarks.common import machine, silent_trainer, write
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.callbacks import Reconstruction, ZeroShot
from clt_lightning.data import Demo, WebImages
from clt_lightning.training.losses import CascadeConfig, TanhConfig
from clt_lightning.training.module import CLTModule
from clt_lightning.training.optim import AdamW
from clt_lightning.training.settings import (
    LossConfig,
    ReviveConfig,
    ScheduleConfig,
    TokensConfig,
    TranscoderConfig,
)
from clt_lightning.transcoder import BatchTopK, JumpReLU, TopK

#: The cascade of the default recipe, and none
CASCADE = {"stream": 0.5, "embedding": 1.0, "images": 64, "start": 0.25, "warmup": 0.1}
NONE = {"stream": 0.0, "embedding": 0.0}
#: How far the default recipe's budget leans to early layers
TILT = 0.6
#: What [CLS] counts where codes are chosen
CLS_WEIGHT = 4.0
#: name -> what differs from the default recipe: BatchTopK, no skip, the cascade's terms, silent features revived, more
#: codes in early layers and at [CLS]
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # what each part gives
    "without revival": {"revive": False},
    "without cascade": {"cascade": NONE},
    "layers alike": {"tilt": 0.0},
    "tokens alike": {"cls_weight": 1.0},
    "cascade: stream alone": {"cascade": {**CASCADE, "embedding": 0.0}},
    "cascade: embedding alone": {"cascade": {**CASCADE, "stream": 0.0}},
    "cascade on 32 images": {"cascade": {**CASCADE, "images": 32}},
    "cascade without warm-up": {"cascade": {**CASCADE, "warmup": 0.0}},
    "bare": {"cascade": NONE, "revive": False, "tilt": 0.0, "cls_weight": 1.0},
    # baselines at equal L0
    "with linear skip": {"skip": True},
    "TopK": {"activation": TopK},
    "TopK, bare": {"activation": TopK, "cascade": NONE, "revive": False},
    "JumpReLU, tanh": {"activation": lambda k: JumpReLU(0.5, 0.5), "tanh": {12: 1.5e-3, 4: 6e-3}},
    "per_layer": {"topology": "per_layer"},
    "per_layer, as many weights": {"topology": "per_layer", "as_many_weights": True},
    # further levers
    "twice as wide": {"wider": 2},
    "half the learning rate": {"lr": 0.5},
    "Adam's mean over 10 steps, not 20": {"beta1": 0.9},
    "twice as long": {"longer": 2},
    "batches of 32, twice the steps": {"batch": 32, "longer": 2},
}
#: two-sided 95 % points of Student's t, by degrees of freedom
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
#: column -> metric and digits
COLUMNS = {
    "points lost": ("points_lost", 2),
    "KL": ("kl", 3),
    "FVU": ("fvu", 4),
    "L0": ("l0", 2),
    "dead, %": ("dead_percent", 1),
    "features' share": ("features_share", 2),
    "seconds": ("seconds", 0),
}


class InMemory(torch.utils.data.Dataset[dict[str, Any]]):
    """A split, decoded once."""

    def __init__(self, loader: Any, n: int | None = None) -> None:
        batches, seen = [], 0
        for batch in loader:
            batches.append(batch)
            seen += len(batch["label"])
            if n is not None and seen >= n:
                break
        self.images = torch.cat([b["image"] for b in batches])[:n]
        self.labels = torch.cat([b["label"] for b in batches])[:n]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index], "key": str(index)}


class World(lightning.LightningDataModule):
    """A small CLIP and its images, decoded once.

    Args:
        name: `demo` or `photos`.
        root: where the demo's renders go, or the folder with `clip/` and `data/`.
        n_train: images to train on.
        n_test: held-out images.
    """

    def __init__(self, name: str, root: str, n_train: int, n_test: int) -> None:
        super().__init__()
        data: WebImages
        if name == "demo":
            self.clip = FrozenCLIP(pretrained="demo")
            data = Demo(root=root, n_train=n_train, n_test=n_test, batch_size=200)
        else:
            weights = f"{root}/clip/open_clip_model.safetensors"
            self.clip = FrozenCLIP("photo", weights)
            data = WebImages(root=f"{root}/data", batch_size=200)
        self.n_layers, data.transform = self.clip.n_layers, self.clip.preprocess
        data.prepare_data()
        data.setup()
        print("decoding", flush=True)
        self.train = InMemory(data.eval_dataloader("train"), n_train)
        self.test = InMemory(data.eval_dataloader("test"), n_test)
        self.classnames, self.templates = data.classnames, data.templates
        self.seed, self.batch_size = 0, 64

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.utils.data.DataLoader(
            self.train, self.batch_size, shuffle=True, drop_last=True, generator=generator
        )

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.test, 200)


def build(recipe: dict[str, Any], k: int, seed: int, options: argparse.Namespace, world: World) -> CLTModule:
    """The module that a recipe trains."""
    loss = LossConfig(cascade=CascadeConfig(**recipe.get("cascade", CASCADE)), extra=recipe.get("extra", []))
    if "tanh" in recipe:
        nearest = min(recipe["tanh"], key=lambda other: abs(other - k))
        loss.tanh = TanhConfig(coefficient=recipe["tanh"][nearest], warmup_steps=options.steps // 4)
    form = {key: recipe[key] for key in ("skip", "topology") if key in recipe}
    shares = {"tilt": recipe.get("tilt", TILT), "cls_weight": recipe.get("cls_weight", CLS_WEIGHT)}
    activation = recipe.get("activation", lambda k: BatchTopK(k, **shares))(k)
    features = round(options.features * recipe.get("wider", 1))
    if recipe.get("as_many_weights"):  # a cross-layer feature has an encoder and, on average, (L + 1) / 2 decoders
        layers = world.n_layers
        features = round(features * (1 + (layers + 1) / 2) / 2)
    return CLTModule(
        world.clip,
        TranscoderConfig(n_features=features, activation=activation, **form),
        loss,
        optimizer=lambda params: AdamW(
            params, lr=options.lr * recipe.get("lr", 1.0), betas=(recipe.get("beta1", 0.95), 0.999)
        ),
        schedule=ScheduleConfig(warmup_steps=50, decay="linear", decay_fraction=1.0),
        tokens=TokensConfig(),
        revive=ReviveConfig() if recipe.get("revive", True) else ReviveConfig(speed=0.0),
        seed=seed,
    )


def run(recipe: dict[str, Any], k: int, seed: int, options: argparse.Namespace, world: World) -> dict[str, float]:
    """Trains and evaluates one recipe."""
    module = build(recipe, k, seed, options, world)
    world.seed, world.batch_size = seed, recipe.get("batch", 64)
    trainer = silent_trainer(round(options.steps * recipe.get("longer", 1)), gradient_clip_val=1.0)
    start = time.perf_counter()
    trainer.fit(module, datamodule=world)
    seconds = time.perf_counter() - start
    evaluation = silent_trainer(limit_val_batches=1.0, callbacks=[Reconstruction(), ZeroShot()])
    metrics = {key: float(v) for key, v in evaluation.validate(module, datamodule=world, verbose=False)[0].items()}
    last = module.clip.n_layers - 1
    original, replaced = metrics["val/zero_shot/original"], metrics[f"val/zero_shot/replaced/0-{last}/all"]
    return {
        "points_lost": 100 * (original - replaced),
        "kl": metrics[f"val/zero_shot/kl/0-{last}/all"],
        "fvu": metrics["val/fvu/all"],
        "l0": metrics["val/l0/all"],
        "dead_percent": 100 * metrics["val/dead/all"],
        "features_share": metrics["val/share/features"],
        "original": 100 * original,
        "seconds": seconds,
    }


def interval(values: list[float], digits: int) -> str:
    """Mean and half-width of the 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = T95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def row(name: str, found: list[dict[str, float]]) -> str:
    """One line of the table."""
    cells = [interval([f[key] for f in found], digits) for key, digits in COLUMNS.values()]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=["demo", "photos"], default="demo")
    parser.add_argument(
        "--root", help="demo: where the renders go (data/demo); photos: the folder with clip/ and data/"
    )
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument(
        "--k", type=int, nargs="+", default=[12, 4], help="features per token: d/8 and d/24 of the worlds"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of 64 images; default: 1400 on the demo, 900 on photos")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--n_train", type=int, default=20000)
    parser.add_argument("--n_test", type=int, help="held-out images; default: 4000 renders, 2000 photographs")
    parser.add_argument("--json", help="write the figures here, after every recipe")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips would stand between the table's lines
    demo = options.world == "demo"
    options.steps = options.steps or (1400 if demo else 900)
    options.n_test = options.n_test or (4000 if demo else 2000)
    if not demo and options.root is None:
        parser.error("--world photos needs --root, the folder with clip/ and data/")
    options.root = options.root or "data/demo"
    if len(options.seeds) - 1 > max(T95):
        parser.error(f"at most {max(T95) + 1} seeds")
    world = World(options.world, options.root, options.n_train, options.n_test)
    rows: list[dict[str, Any]] = []
    for k in options.k:
        print(f"\n{options.world}, k = {k}, {options.steps} steps, seeds {options.seeds}\n", flush=True)
        print(f"| recipe | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}", flush=True)
        for name in options.recipes:
            found = [run(RECIPES[name], k, seed, options, world) for seed in options.seeds]
            rows.append({"recipe": name, "k": k, "seeds": options.seeds, "runs": found})
            print(row(name, found), flush=True)
            if options.json:
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                write(options.json, {"machine": machine("cpu"), "options": vars(options), "rows": rows})


if __name__ == "__main__":
    main()

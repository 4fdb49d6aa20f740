"""`python -m benchmarks.recipes`: what each training option gives for the cascade, on the embedded demo, over seeds.

All recipes have the same L0, steps and tokens. The loss of zero-shot accuracy with every MLP replaced at all tokens is
measured on held-out renders, in points; intervals are 95 % over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import lightning
import torch

from benchmarks.common import machine, write
from clt_lightning.callbacks import Reconstruction, ZeroShot
from clt_lightning.data import Demo
from clt_lightning.module import CLTModule
from clt_lightning.optim import AdamW
from clt_lightning.settings import (
    ClipConfig,
    LossConfig,
    ScheduleConfig,
    TokensConfig,
    TranscoderConfig,
    from_plain,
)
from clt_lightning.transcoder import BatchTopK, TopK

#: The cascade's terms begin after a quarter of the run and see half of a batch's images
PHASE = {"images": 32, "start": 0.25}
#: name -> what differs from the plain recipe
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "skip": {"skip": True},
    "skip, late layers weighed twice": {"skip": True, "loss": {"layer_weights": "late"}},
    "skip, BatchTopK": {"skip": True, "activation": BatchTopK},
    "skip, cascade outputs": {"skip": True, "loss": {"cascade": {"reconstruction": 0.5, **PHASE}}},
    "skip, cascade embedding": {"skip": True, "loss": {"cascade": {"embedding": 1.0, **PHASE}}},
    "skip, cascade stream": {"skip": True, "loss": {"cascade": {"stream": 0.5, **PHASE}}},
    "default": {"skip": True, "activation": BatchTopK, "loss": {"cascade": {"stream": 0.5, **PHASE}}},
}
#: two-sided 95 % points of Student's t, by degrees of freedom
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57}


class InMemory(torch.utils.data.Dataset):
    """A split of the demo, decoded once."""

    def __init__(self, loader: Any) -> None:
        batches = list(loader)
        self.images = torch.cat([b["image"] for b in batches])
        self.labels = torch.cat([b["label"] for b in batches])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index], "key": str(index)}


class Names(lightning.LightningDataModule):
    """In-memory loaders with the demo's class names."""

    def __init__(self, train: InMemory, test: InMemory, names: list[str], templates: list[str], seed: int) -> None:
        super().__init__()
        self.train, self.test, self.classnames, self.templates, self.seed = train, test, names, templates, seed

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.utils.data.DataLoader(self.train, 64, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.test, 200)


def run(recipe: dict[str, Any], k: int, seed: int, options: argparse.Namespace, data: Names) -> dict[str, float]:
    """Trains and evaluates one recipe."""
    probe = {"pretrained": "demo"}
    loss = json.loads(json.dumps(recipe.get("loss", {})))
    module_loss = from_plain(LossConfig, {key: value for key, value in loss.items() if key != "layer_weights"})
    module = CLTModule(
        ClipConfig(**probe),
        TranscoderConfig(
            n_features=options.features, activation=recipe.get("activation", TopK)(k), skip=recipe.get("skip", False)
        ),
        module_loss,
        optimizer=lambda params: AdamW(params, lr=options.lr),
        schedule=ScheduleConfig(warmup_steps=50, decay="linear", decay_fraction=1.0),
        tokens=TokensConfig(),
        seed=seed,
    )
    if "layer_weights" in loss:
        n = module.clip.n_layers
        module.loss_config.layer_weights = [1.0 + layer / (n - 1) for layer in range(n)]
    data.seed = seed
    trainer = lightning.Trainer(
        max_steps=options.steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        callbacks=[Reconstruction(), ZeroShot()],
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    evaluation = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[Reconstruction(), ZeroShot()]
    )
    metrics = {key: float(v) for key, v in evaluation.validate(module, datamodule=data, verbose=False)[0].items()}
    last = module.clip.n_layers - 1
    original, replaced = metrics["val/zero_shot/original"], metrics[f"val/zero_shot/replaced/0-{last}/all"]
    return {
        "fvu": metrics["val/fvu/all"],
        "l0": metrics["val/l0/all"],
        "original": original,
        "loss_points": 100 * (original - replaced),
        "kl": metrics[f"val/zero_shot/kl/0-{last}/all"],
        "seconds": seconds,
    }


def interval(values: list[float], digits: int) -> str:
    """Mean and half-width of the 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = T95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--k", type=int, nargs="+", default=[12, 4], help="features a token: d/8 and d/24 of the demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--n_train", type=int, default=20000)
    parser.add_argument("--n_test", type=int, default=4000)
    parser.add_argument("--root", default="data/demo")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    demo = Demo(root=options.root, n_train=options.n_train, n_test=options.n_test, batch_size=200)
    from clt_lightning.clip import FrozenCLIP

    demo.transform = FrozenCLIP(pretrained="demo").preprocess
    demo.prepare_data()
    demo.setup()
    assert demo.classnames is not None
    assert demo.templates is not None
    print("decoding", flush=True)
    data = Names(
        InMemory(demo.eval_dataloader("train")),
        InMemory(demo.eval_dataloader("test")),
        demo.classnames,
        demo.templates,
        0,
    )
    rows: list[dict[str, Any]] = []
    for k in options.k:
        print(f"\nk = {k}\n\n| recipe | points lost | KL | FVU | L0 | seconds |\n|---|---|---|---|---|---|", flush=True)
        for name in options.recipes:
            found = [run(RECIPES[name], k, seed, options, data) for seed in options.seeds]
            rows.append({"recipe": name, "k": k, "seeds": options.seeds, "runs": found})
            digits = {"loss_points": 2, "kl": 3, "fvu": 4, "l0": 2}
            cells = [interval([f[key] for f in found], n) for key, n in digits.items()]
            seconds = statistics.fmean(f["seconds"] for f in found)
            print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
            if options.json:
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                write(options.json, {"machine": machine("cpu"), "options": vars(options), "rows": rows})


if __name__ == "__main__":
    main()

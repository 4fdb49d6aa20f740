"""`python -m benchmarks.cascade`: what the cascade's terms add to a training step.

One run of Lightning's Trainer with a config's model, in which steps with and without the cascade alternate: the time
from a batch's arrival to the optimizer's end, medians over steps. On a CPU it is the process's CPU time, which other
work on the machine hardly moves. `--profile` tells where the difference goes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from benchmarks.common import machine, silent_trainer, synchronize, write
from clt_lightning.training.module import CLTModule
from clt_lightning.training.optim import AdamW
from clt_lightning.training.settings import LossConfig, TranscoderConfig, from_plain

CONFIGS = Path(__file__).parents[1] / "configs"


def images(clip: Any, n: int, batches: int) -> list[dict[str, Any]]:
    """Batches of the demo's renders, as the backbone's transform makes them."""
    from clt_lightning.data.worlds.renders import render

    drawn = [clip.preprocess(render(0, index).image) for index in range(n * min(batches, 4))]
    some = [{"image": torch.stack(drawn[i : i + n])} for i in range(0, len(drawn), n)]
    return [some[i % len(some)] for i in range(batches)]


class Alternating(Callback):
    """Steps with and without the cascade in turn, timed."""

    def __init__(self, device: str, warm: int) -> None:
        self.device, self.warm = device, warm
        self.times: dict[bool, list[float]] = {False: [], True: []}
        self.on = False
        self.profiles: dict[bool, Any] = {}

    def _now(self) -> float:
        synchronize(self.device)
        return time.process_time() if self.device == "cpu" else time.perf_counter()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.on = bool(batch_idx % 2)
        module.cascade_on = self.on
        if self.on in self.profiles and batch_idx >= self.warm:
            self.profiles[self.on].start()
        self.start = self._now()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= self.warm:
            self.times[self.on].append(self._now() - self.start)
            if self.on in self.profiles:
                self.profiles[self.on].stop()


class Module(CLTModule):
    """The module, whose cascade can be turned on and off between steps."""

    cascade_on = False

    def _cascade_strength(self) -> float:
        return float(self.cascade_on)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step with and without the cascade."""
    config = yaml.safe_load(Path(options.config).read_text())["model"]
    if options.pretrained:
        config["backbone"]["init_args"]["pretrained"] = options.pretrained
    if options.features:
        config["transcoder"]["n_features"] = options.features
    if options.images is not None:
        config["loss"]["cascade"]["images"] = options.images
    torch.manual_seed(0)
    module = Module(
        backbone=config["backbone"],
        transcoder=from_plain(TranscoderConfig, config["transcoder"]),
        loss=from_plain(LossConfig, config["loss"]),
        optimizer=lambda params: AdamW(params, lr=1e-3),
        seed=0,
    )
    timed = Alternating(options.device, options.warm)
    if options.profile:
        timed.profiles = {on: profile(activities=[ProfilerActivity.CPU], acc_events=True) for on in (False, True)}
    precision: Any = "bf16-mixed" if options.dtype == "bf16" else "32-true"
    trainer = silent_trainer(
        options.steps + options.warm,
        accelerator="gpu" if options.device == "cuda" else "cpu",
        precision=precision,
        gradient_clip_val=1.0,
        callbacks=[timed],
    )
    batches = images(module.clip, options.batch_size, options.steps + options.warm)
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    plain, cascade = (statistics.median(timed.times[on]) for on in (False, True))
    for on, found in timed.profiles.items():
        print(f"\n{'with' if on else 'without'} the cascade:")
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=60))
    return {"plain": plain, "cascade": cascade, "ratio": cascade / plain, "steps": len(timed.times[True])}


def main(words: list[str] | None = None) -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(CONFIGS / "quickstart.yaml"), help="whose model is taken")
    parser.add_argument("--pretrained", help="another CLIP's weights")
    parser.add_argument("--features", type=int, help="another number of features")
    parser.add_argument("--images", type=int, help="images of a batch that the cascade runs on")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="steps that are timed, half of them with the cascade")
    parser.add_argument("--warm", type=int, default=20, help="steps before them")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="where the time of both goes")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args(words)
    info = machine(options.device)
    found = run(options)
    print(
        f"{info}\n{options.batch_size} images, {options.dtype}: a step {found['plain']:.3f} s, with the cascade "
        f"{found['cascade']:.3f} s = {found['ratio']:.2f} x (medians of {found['steps']} steps each, in turn)"
    )
    write(options.json, {"machine": info, "options": vars(options), **found})


if __name__ == "__main__":
    main()

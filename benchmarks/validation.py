"""What a validation costs beside a training step's forward, on the same images.

python -m benchmarks.validation                 # ViT-B/32, random weights
python -m benchmarks.validation --demo          # the small CLIP that comes with the package
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch

import clt_lightning as cl
from benchmarks.common import machine, medians
from clt_lightning.callbacks import Reconstruction, Shares, ZeroShot
from clt_lightning.callbacks.measuring import SplitPass
from clt_lightning.training.module import CLTModule

CLASSES, TEMPLATES = ["red circle", "blue square", "green cross"], ["a picture of a {c}"]


def made(demo: bool, features: int | None, k: int | None) -> CLTModule:
    """A module whose transcoder has seen its data's scales."""
    clip = cl.FrozenCLIP(pretrained="demo") if demo else cl.FrozenCLIP("ViT-B-32-quickgelu", pretrained=None)
    activation = cl.BatchTopK(k or (12 if demo else 32))
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, features or (768 if demo else 3072), activation, seed=0)
    clt.normalized.fill_(True)
    with torch.no_grad():  # BatchTopK finds its threshold
        clt.train()(clip.capture(torch.randn(8, 3, clip.image_size, clip.image_size)).x)
    return CLTModule(clip, clt, seed=0)


def main(words: list[str] | None = None) -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="the small CLIP that comes with the package")
    parser.add_argument("--images", type=int, default=64, help="of a batch (default: 64)")
    parser.add_argument("--features", type=int, help="of each layer (default: 3,072, with --demo 768)")
    parser.add_argument("--k", type=int, help="active features per token (default: 32, with --demo 12)")
    parser.add_argument("--windows", nargs="+", help="as zero_shot.windows (default: four, as in the paper)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    args = parser.parse_args(words)
    module = made(args.demo, args.features, args.k)
    firsts = [0, 1, 2, 3] if args.demo else [0, 3, 7, 10]
    windows = args.windows or [f"{first}-" for first in firsts]
    measures = Reconstruction(), ZeroShot(windows, classnames=CLASSES, templates=TEMPLATES), Shares()
    trainer = pl.Trainer(accelerator="cpu", callbacks=list(measures), logger=False, enable_checkpointing=False)
    for callback in measures:
        callback.setup(trainer, module, "validate")
    side = module.clip.image_size
    batch = {"image": torch.randn(args.images, 3, side, side), "label": torch.arange(args.images) % len(CLASSES)}

    def forward() -> None:
        module.transcoder.train()
        module.transcoder(module.clip.capture(batch["image"]).x)

    @torch.inference_mode()
    def validation() -> None:
        module.transcoder.eval()
        whole = SplitPass(trainer, module)
        whole.take(trainer, module.evaluate_batch(batch), batch)
        whole.numbers()

    validation()  # makes the head of the classes, once
    found = medians({"training": forward, "validation": validation}, args.rounds, "cpu")
    print(machine("cpu"))
    print(
        f"{args.images} images, windows {', '.join(windows)}: forward of a training step {found['training']:.2f} s, ",
        end="",
    )
    print(f"validation {found['validation']:.2f} s, ratio {found['validation'] / found['training']:.2f}")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.priors`: what features that write to few layers cost on the demo, by the way they are found.

The quickstart's recipe, with a prior on the decoder's groups: the sparse-decoding prior; group L1 of one rate, whose
coefficient is searched so that it leaves as many groups; pruning to as many groups, after training and while it goes
on. Each figure is of held-out images, those of the cascade (all MLPs replaced at all tokens) paired with the plain
run's of the same seed; intervals are 95 %, bootstrap over images and seeds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning
import numpy as np
import torch

from benchmarks.recipes import CASCADE, World, build
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.losses.base import LossTerm
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.support import depth_support


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
        reads: rows of the decoder that an image's codes read: an active code and a layer that its feature writes to;
            mean over images.
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
    written = [there.float().sum(1) for there in depth_support(clt).written]
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
    support = depth_support(clt)
    fvu = float((error.double() / spread).mean())
    return Measured(
        support.mean_groups, support.share, fvu, codes / tokens / clt.n_layers, right, kl, reads / len(images)
    )


def train(extra: list[LossTerm], seed: int, options: argparse.Namespace, world: World) -> CrossLayerTranscoder:
    """The quickstart's recipe with a prior."""
    recipe = {"batch": 32, "cascade": CASCADE | {"images": 32}, "extra": extra}
    module = build(recipe, options.k, seed, options, world)
    world.seed, world.batch_size = seed, 32
    trainer = lightning.Trainer(
        max_steps=options.steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=world)
    clt: CrossLayerTranscoder = module.transcoder
    return clt.eval()


class Cache:
    """Trained transcoders and what was measured of them, by name and seed, in a folder."""

    def __init__(self, folder: Path, options: argparse.Namespace, world: World) -> None:
        self.folder, self.options, self.world = folder, options, world

    def transcoder(self, name: str, seed: int, extra: list[LossTerm]) -> CrossLayerTranscoder:
        place = self.folder / f"{name}-{seed}"
        if not (place / "config.json").is_file():
            print(f"training {name}, seed {seed}", flush=True)
            train(extra, seed, self.options, self.world).save_pretrained(place)
        return CrossLayerTranscoder.from_pretrained(place)

    def measured(self, name: str, seed: int, clt: CrossLayerTranscoder) -> Measured:
        path = self.folder / f"{name}-{seed}.json"
        if not path.is_file():
            path.write_text(json.dumps(asdict(measure(clt, self.world))))
        found = Measured(**json.loads(path.read_text()))
        lost = 100 * np.mean(found.right)
        print(
            f"  {name}, seed {seed}: groups {found.groups:.3f} FVU {found.fvu:.4f} right {lost:.2f} "
            f"KL {np.mean(found.kl):.4f} L0 {found.l0:.2f}",
            flush=True,
        )
        return found

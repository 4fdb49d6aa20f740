"""Train the demo's CLIP on its renders: `python -m clt_lightning.backbone.clip.demo.train --output FOLDER`.

A Vision Transformer of 4 layers and a text tower of 2, both open_clip's own, trained contrastively on pairs of render
and caption. The vocabulary is the words of the captions, so the text tower stays small. Writes what
`FrozenCLIP(pretrained="demo")` reads: `open_clip_model.safetensors` and `open_clip_config.json` (architecture,
preprocessing, vocabulary), and `metrics.json` with what was measured on renders of other seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save
from torch import Tensor

from clt_lightning.backbone.clip.demo.evaluate import evaluate
from clt_lightning.backbone.clip.frozen import FrozenCLIP
from clt_lightning.backbone.clip.places import CONFIG_NAME
from clt_lightning.backbone.clip.source import DEMO_CHECKPOINT
from clt_lightning.backbone.clip.words import WordTokenizer
from clt_lightning.data.worlds.renders import CLASSNAMES, DEFAULT_SIZE, HELD_OUT, N_CLASSES, TEMPLATES, render

CONTEXT_LENGTH = 16
TRAIN_SEED, EVAL_SEED = 1_000_000, 2_000_000


@dataclass
class Pairs:
    """Renders with their captions, in memory.

    Attributes:
        images: `(n, size, size, 3)` uint8.
        captions: `(n, kinds)` numbers of sentences.
        meanings: `(n, kinds)` like `captions`, but sentences that say the same have the same number.
        sentences: the sentences by number.
    """

    images: Tensor
    captions: Tensor
    meanings: Tensor
    sentences: list[str]


def main(args: Sequence[str] | None = None) -> None:
    """Train, write, and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m clt_lightning.backbone.clip.demo.train",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to; made if it is not there")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs per step")
    parser.add_argument("--n-train", type=int, default=60_000, help="renders to train on")
    parser.add_argument("--n-eval", type=int, default=6400, help="renders of another seed to measure on")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="AdamW's weight decay of matrices")
    parser.add_argument("--width", type=int, default=96, help="width of the image tower")
    parser.add_argument("--layers", type=int, default=4, help="layers of the image tower")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, renders and order")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that draw")
    parser.add_argument("--measure-only", action="store_true", help="only measure the weights in --output, and print")
    options = parser.parse_args(args)

    checkpoint = options.output / DEMO_CHECKPOINT.name
    if not options.measure_only:
        make(options, checkpoint)
    found = measure(FrozenCLIP("demo", str(checkpoint)), options.n_eval, EVAL_SEED + options.seed)
    print(json.dumps(found, indent=1))
    if not options.measure_only:
        recorded = {k: v for k, v in vars(options).items() if k not in ("output", "workers", "measure_only")}
        metrics = json.dumps({"options": recorded, "evaluation": found}, indent=1)
        (options.output / "metrics.json").write_text(metrics + "\n", encoding="utf-8")


def make(options: argparse.Namespace, checkpoint: Path) -> None:
    """Draw, train, and write the weights with their config."""
    pairs = draw_pairs(options.n_train, TRAIN_SEED + options.seed, options.workers)
    tokenizer = WordTokenizer.from_texts([*pairs.sentences, *TEMPLATES, *CLASSNAMES], CONTEXT_LENGTH)
    config = make_config(options.width, options.layers, tokenizer)
    torch.manual_seed(options.seed)
    model = open_clip.CLIP(**config["model_cfg"])
    fit(model, pairs, tokenizer, options)

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    # not save_file, which lets nobody but the owner read the file
    checkpoint.write_bytes(save({key: value.contiguous() for key, value in model.state_dict().items()}))
    (checkpoint.parent / CONFIG_NAME).write_text(json.dumps(config) + "\n", encoding="utf-8")


def measure(clip: FrozenCLIP, n: int, seed: int) -> dict[str, Any]:
    """Evaluate on `n` fresh renders of all classes, of the world `seed`."""
    drawn = [render(seed, i, size=clip.image_size) for i in range(n)]
    images = as_input(torch.from_numpy(np.stack([np.asarray(r.image) for r in drawn])))
    labels = torch.tensor([r.label for r in drawn])
    return {"seed": seed, **evaluate(clip, images, labels, CLASSNAMES, TEMPLATES, HELD_OUT)}


def make_config(width: int, layers: int, tokenizer: WordTokenizer) -> dict[str, Any]:
    """The JSON beside the weights, in open_clip's form, with the vocabulary."""
    return {
        "name": f"demo-ViT-{layers}-{width}",
        "model_cfg": {
            "embed_dim": 64,
            "quick_gelu": False,
            "vision_cfg": {
                "image_size": DEFAULT_SIZE,
                "patch_size": 8,
                "width": width,
                "layers": layers,
                "head_width": 32,
            },
            "text_cfg": {
                "context_length": tokenizer.context_length,
                "vocab_size": tokenizer.vocab_size,
                "width": 64,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD},
        "tokenizer": {"words": tokenizer.words, "context_length": tokenizer.context_length},
    }


def draw_pairs(n: int, seed: int, workers: int) -> Pairs:
    """Draw training renders of all classes but the held-out ones."""
    seen = [label for label in range(N_CLASSES) if label not in HELD_OUT]
    draw = partial(_draw_pair, seed, seen)
    images = np.empty((n, DEFAULT_SIZE, DEFAULT_SIZE, 3), dtype=np.uint8)
    numbers: dict[str, int] = {}
    captions, meanings = [], []
    began = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        for i, (image, sentences) in enumerate(pool.map(draw, range(n), chunksize=250)):
            images[i] = image
            row = [numbers.setdefault(sentence, len(numbers)) for sentence in sentences]
            captions.append(row)
            meanings.append([row[0], row[0], *row[2:]])  # the second caption says in a template what the first says
            if (i + 1) % 10_000 == 0 or i + 1 == n:
                print(f"drew {i + 1:,} of {n:,} renders in {time.perf_counter() - began:.0f} s", flush=True)
    return Pairs(torch.from_numpy(images), torch.tensor(captions), torch.tensor(meanings), list(numbers))


def _draw_pair(seed: int, labels: list[int], index: int) -> tuple[np.ndarray, list[str]]:
    drawn = render(seed, index, label=labels[index % len(labels)])
    return np.asarray(drawn.image), drawn.captions


def fit(model: open_clip.CLIP, pairs: Pairs, tokenizer: WordTokenizer, options: argparse.Namespace) -> None:
    """Train in place."""
    tokens = tokenizer(pairs.sentences)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.lr,
        betas=(0.9, 0.98),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_schedule, options.steps))
    generator = torch.Generator().manual_seed(options.seed)
    began = time.perf_counter()
    running = 0.0
    batches = islice(_batches(len(pairs.images), options.batch_size, generator), options.steps)
    for step, rows in enumerate(batches, start=1):
        images = _shifted(pairs.images[rows], generator)
        kind = torch.randint(pairs.captions.shape[1], (len(rows),), generator=generator)
        every = torch.arange(len(rows))
        sentences = pairs.captions[rows][every, kind]
        # an image's other true captions in the batch are no negatives
        true = (pairs.meanings[rows].unsqueeze(1) == pairs.meanings[rows][every, kind].view(1, -1, 1)).any(-1)
        loss = contrastive_loss(model, images, tokens[sentences], true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0 or step == options.steps:
            seconds = time.perf_counter() - began
            left = seconds / step * (options.steps - step)
            print(f"step {step:,} of {options.steps:,}: loss {running:.3f}, {left:.0f} s left", flush=True)
    model.eval()


def contrastive_loss(model: open_clip.CLIP, images: Tensor, tokens: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric loss; `true[i, j]` says that caption j holds for image i as well, and so is no negative."""
    logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ model.encode_text(tokens, True).T
    own = torch.eye(len(images), dtype=torch.bool)
    logits = logits.masked_fill(true & ~own, float("-inf"))
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def as_input(images: Tensor) -> Tensor:
    """uint8 `(n, size, size, 3)` -> normalised float32 `(n, 3, size, size)`, as the demo's `preprocess` makes them."""
    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch as the model reads it, moved by up to 3 pixels."""
    x = F.pad(as_input(images), (3, 3, 3, 3), mode="reflect")
    dy, dx = (int(v) for v in torch.randint(7, (2,), generator=generator))
    return x[:, :, dy : dy + images.shape[1], dx : dx + images.shape[2]]


def _schedule(steps: int, step: int) -> float:
    warm_up = min(200, steps // 10 + 1)
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def _batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(n, generator=generator).split(batch_size)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.stream`: images and tokens per second end to end, and where the time goes.

Tars are read, decoded and pushed through CLIP and a training step, as `fit` does; each part is also timed alone:
  data        reading and decoding, as the step waits for it
  clip        the backbone's forward, with capture
  transcoder  forward and backward
  optimizer   the update
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from typing import Any

import torch

from benchmarks.common import machine, synchronize, write
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.data import Demo
from clt_lightning.training.losses import reconstruction_loss
from clt_lightning.training.optim import AdamW
from clt_lightning.transcoder import CrossLayerTranscoder, StatisticsAccumulator, TopK


def run(options: argparse.Namespace, root: str) -> dict[str, Any]:
    """Streams `steps` batches and returns seconds by part."""
    clip = FrozenCLIP(options.name, options.pretrained, options.precision).to(options.device)
    size = max(16, min(options.render_size, clip.image_size))
    n_train = options.batch_size * (options.steps + 2)
    data = Demo(
        root=root, n_train=n_train, n_test=1, size=size, batch_size=options.batch_size, num_workers=options.num_workers
    )
    data.transform = clip.preprocess
    data.prepare_data()
    data.setup("fit")
    clt = CrossLayerTranscoder(clip.n_layers, clip.d_model, options.features, TopK(options.k), seed=0)
    clt.to(options.device)
    optimizer = AdamW(clt.parameters(), lr=1e-4)
    spent: defaultdict[str, float] = defaultdict(float)
    tokens = 0
    mark = time.perf_counter()

    def lap(part: str, counted: bool) -> None:
        nonlocal mark
        synchronize(options.device)
        now = time.perf_counter()
        if counted:
            spent[part] += now - mark
        mark = now

    for number, batch in enumerate(data.train_dataloader()):
        counted = number >= 2  # the first steps start workers and allocate
        if number == options.steps + 2:
            break
        images = batch["image"].to(options.device, non_blocking=True)
        lap("data", counted)
        acts = clip.capture(images)
        lap("clip", counted)
        if not bool(clt.normalized):
            sums = StatisticsAccumulator(clip.n_layers, clip.d_model, options.device)
            sums.update(acts.x, acts.y)
            clt.normalize(sums.result())
            lap("statistics", False)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.autocast):
            loss = reconstruction_loss(acts.y, clt(acts.x).y_hat, clt.y_var, None)
        loss.backward()
        lap("transcoder", counted)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap("optimizer", counted)
        tokens += acts.n_tokens if counted else 0
    total = sum(spent.values())
    return {
        "seconds": dict(spent),
        "share": {part: value / total for part, value in spent.items()},
        "images_per_second": options.steps * options.batch_size / total,
        "tokens_per_second": tokens / total,
    }


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="ViT-B-32-quickgelu", help="open_clip architecture")
    parser.add_argument("--pretrained", default=None, help="tag, path or demo; default: random weights, same cost")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="the backbone's")
    parser.add_argument("--autocast", action="store_true", help="the encoder's product in bf16")
    parser.add_argument("--features", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=16, help="images per step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--render_size", type=int, default=224, help="side of the renders in the tars, in pixels")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    info = machine(options.device)
    with tempfile.TemporaryDirectory() as root:
        result = run(options, root)
    print(info)
    print(f"{result['images_per_second']:.1f} images/s, {result['tokens_per_second']:,.0f} tokens/s")
    for part, value in result["seconds"].items():
        print(f"  {part:<11} {value / options.steps:7.3f} s per step  {100 * result['share'][part]:5.1f} %")
    write(options.json, {"machine": info, "options": vars(options), **result})


if __name__ == "__main__":
    main()

"""Collecting features at full size: CPU time of a batch and memory of the state, on made codes.

    OMP_NUM_THREADS=1 python -m benchmarks.features                     # ViT-B/32: 50 positions, 6,144 features
    OMP_NUM_THREADS=1 python -m benchmarks.features --positions 197     # ViT-B/16

One layer is measured; a model has `layers` of them.
"""

from __future__ import annotations

import argparse
import time

import torch

from clt_lightning.analysis.collector import Best, LayerCollector, key_seeds
from clt_lightning.transcoder.pairs import Pairs


def state_bytes(collector: LayerCollector) -> int:
    """Bytes of everything that a collector keeps."""
    kept = [collector.max_code, *collector.sums.values()]
    for best in (collector.top, collector.sample):
        assert isinstance(best, Best)
        kept += [best.score, best.value, best.image, best.map]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("positions", 50),
        ("features", 6144),
        ("l0", 64),
        ("batch", 64),
        ("batches", 40),
        ("embed_dim", 512),
        ("classes", 100),
        ("layers", 12),
        ("images", 10_000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    collector = LayerCollector(a.features, a.positions, a.embed_dim, a.classes)
    generator = torch.Generator().manual_seed(0)
    # some features fire often, others seldom, as trained ones do
    skew = torch.linspace(0, 0.5, a.features)
    seconds = []
    for batch in range(a.batches):
        scores = torch.rand(a.batch * a.positions, a.features, generator=generator) + skew
        pairs = Pairs.rectangular(scores.topk(a.l0, 1).indices, a.features)
        values = torch.rand(pairs.features.numel(), generator=generator) + 0.1
        e = torch.nn.functional.normalize(torch.randn(a.batch, a.embed_dim, generator=generator), dim=1)
        labels = torch.randint(0, a.classes, (a.batch,), generator=generator)
        seeds = key_seeds([f"{batch}/{i}" for i in range(a.batch)])
        start = time.process_time()
        collector.update(pairs, values, e, labels, seeds, batch * a.batch)
        seconds.append(time.process_time() - start)
    later = sorted(seconds[1:])[len(seconds) // 2]
    print(f"CPU seconds a batch and layer: first {seconds[0]:.3f}, median of the others {later:.3f}")
    total = later * a.layers * a.images / a.batch
    print(f"{a.images:,} images, {a.layers} layers: {total / 60:.1f} minutes of CPU time")
    print(f"state of {a.layers} layers: {a.layers * state_bytes(collector) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

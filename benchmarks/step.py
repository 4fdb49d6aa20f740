"""`python -m benchmarks.step`: a training step (forward, backward, AdamW), against other ways to do it.

Variants, all on the same weights, data and loss:
  ours        the sparse path
  dense       the packed dense reference: one matrix product per source layer
  bag         one embedding_bag a pair of layers, plain autograd
  per_layer   ours with topology per_layer (the baseline's own cost)
  auxk        ours with AuxK as the module asks for it, a tenth of the features dead

With OMP_NUM_THREADS=1 times are the process's CPU time, which other work on the machine hardly moves.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import machine, medians, rates, seconds, write
from clt_lightning.core.memory import peak_resident, resident
from clt_lightning.training.losses import AuxKConfig, auxiliary_tokens, auxk_loss, reconstruction_loss
from clt_lightning.training.optim import AdamW
from clt_lightning.transcoder import AuxiliaryRequest, CrossLayerTranscoder, TopK
from clt_lightning.transcoder.decoders import Topology
from clt_lightning.transcoder.precision import cpu_multiplies
from clt_lightning.transcoder.top import top_indices

VARIANTS = ("ours", "dense", "bag", "per_layer", "auxk")


def bag_forward(clt: CrossLayerTranscoder, x: torch.Tensor, k: int) -> torch.Tensor:
    """The way that many take: top-k, then one embedding_bag a (source, target), everything by autograd."""
    y: list[Any] = [clt.bias(j) for j in range(clt.n_layers)]
    for source in range(clt.n_layers):
        pre = F.linear(x[source], clt.W_enc[source], clt.b_enc[source])
        indices = top_indices(pre.detach(), k)
        values = torch.relu(pre.gather(1, indices))
        for t in range(clt.n_targets(source)):
            block = clt.W_dec[source][:, t]
            y[source + t] = y[source + t] + F.embedding_bag(indices, block, mode="sum", per_sample_weights=values)
    return torch.stack(y)


def auxiliary_request(args: argparse.Namespace) -> AuxiliaryRequest:
    """AuxK with the module's defaults and a tenth of the features dead."""
    generator = torch.Generator().manual_seed(2)
    dead = torch.rand(args.layers, args.features, generator=generator) < 0.1
    k = args.d_model // 2
    n = auxiliary_tokens(AuxKConfig(), args.tokens, k, int(dead.sum(1).max()), args.k)
    chosen = torch.randperm(args.tokens, generator=generator)[:n]
    return AuxiliaryRequest(dead.to(args.device), k, chosen.to(args.device))


class Setting:
    """Weights, optimizer and data that all variants of a topology share: several sets of them would not fit."""

    def __init__(self, topology: Topology, args: argparse.Namespace) -> None:
        clt = CrossLayerTranscoder(args.layers, args.d_model, args.features, TopK(args.k), topology, seed=0)
        self.clt = clt.to(args.device)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for W in self.clt.W_dec:
                W.normal_(std=0.01)
        shape = (args.layers, args.tokens, args.d_model)
        self.x = torch.randn(shape, generator=generator).to(args.device)
        self.y = torch.randn(shape, generator=generator).to(args.device)
        # weights stay what they are: steps on one batch of noise would crowd its features at the cut
        self.optimizer = AdamW(self.clt.parameters(), lr=1e-7)
        self.variance = torch.full((args.layers,), float(args.d_model), device=args.device)


class Step:
    """One variant: the three parts of a step."""

    def __init__(self, variant: str, args: argparse.Namespace, setting: Setting) -> None:
        self.variant, self.k = variant, args.k
        self.clt, self.optimizer = setting.clt, setting.optimizer
        self.x, self.y, self.variance = setting.x, setting.y, setting.variance
        self.autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16")
        self.request = auxiliary_request(args) if variant == "auxk" else None

    def forward(self) -> None:
        with self.autocast:
            self.clt.backend = "dense" if self.variant == "dense" else "sparse"
            if self.variant == "bag":
                self.loss = reconstruction_loss(self.y, bag_forward(self.clt, self.x, self.k), self.variance, None)
                return
            out = self.clt(self.x, auxiliary=self.request)
            self.loss = reconstruction_loss(self.y, out.y_hat, self.variance, None)
            if self.request is not None:
                assert out.auxiliary is not None
                chosen = self.request.tokens
                self.loss += auxk_loss(self.y[:, chosen], out.y_hat[:, chosen], out.auxiliary, self.variance) / 32

    def backward(self) -> None:
        self.loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        self.forward()
        self.backward()
        self.update()


def build(variants: Sequence[str], args: argparse.Namespace) -> dict[str, Step]:
    """The variants of one point of the grid."""
    settings: dict[Topology, Setting] = {}
    steps = {}
    for variant in variants:
        topology: Topology = "per_layer" if variant == "per_layer" else "cross_layer"
        if topology not in settings:
            settings[topology] = Setting(topology, args)
        steps[variant] = Step(variant, args, settings[topology])
    return steps


def runs_in_bf16(device: str) -> bool:
    """Whether autocast's products are made in bf16 there."""
    return device == "cuda" or cpu_multiplies(torch.bfloat16)


def floor(args: argparse.Namespace, rate: dict[str, float]) -> dict[str, float]:
    """Seconds that cannot be saved: the encoder's product, and the bytes of gradients and Adam.

    Bytes: every gradient entry is written once (4); AdamW reads weight, gradient and two moments and writes three (28).
    """
    L, d, n = args.layers, args.d_model, args.features
    weights = L * n * d + L * (L + 1) // 2 * n * d
    product = 2 * L * args.tokens * n * d / rate["product"]
    return {"encoder_product": product, "bytes": weights * 32 / rate["copy"], "weights": float(weights)}


def parts(step: Step, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of forward, backward and optimizer."""
    times: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
    for _ in range(rounds):
        for name, fn in (("forward", step.forward), ("backward", step.backward), ("optimizer", step.update)):
            times[name].append(seconds(fn, device))
    return {name: sorted(v)[len(v) // 2] for name, v in times.items()}


def _known(size: int | None) -> int:
    if size is None:
        raise OSError("this system does not say how much memory a process takes")
    return size


def _memory(variant: str, args: argparse.Namespace, queue: Any) -> None:
    step = build([variant], args)[variant]
    weights = sum(p.numel() * 4 for p in step.clt.parameters())
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    else:
        base = _known(resident())
    for _ in range(2):
        step()
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else _known(peak_resident())
    # base holds weights and data; gradients and two moments come on top of it in any case
    queue.put({"peak": peak, "beyond_weights_gradients_state": peak - base - 3 * weights})


def peak_memory(variant: str, args: argparse.Namespace) -> dict[str, int]:
    """Bytes at the peak of a step, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_memory, args=(variant, args, queue))
    process.start()
    process.join()
    if process.exitcode:
        return {"peak": -1, "beyond_weights_gradients_state": -1}
    result: dict[str, int] = queue.get()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d_model", type=int, default=768)
    parser.add_argument("--features", type=int, nargs="+", default=[3072])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: the encoder's product under autocast"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3, help="rounds that the medians are taken over")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in processes of their own")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    # the floor's product in the type that the encoder's takes
    kind = torch.bfloat16 if options.dtype == "bf16" and runs_in_bf16(options.device) else torch.float32
    rate = rates(options.device, kind)
    info = machine(options.device)
    print(f"{info}\nproducts {rate['product'] / 1e9:.0f} GFLOP/s, copies {rate['copy'] / 1e9:.1f} GB/s")
    rows = []
    for features in options.features:
        for tokens in options.tokens:
            for k in options.k:
                args = argparse.Namespace(**{**vars(options), "features": features, "tokens": tokens, "k": k})
                rows.append(measure(args, rate))
    write(options.json, {"machine": info, "rates": rate, "rows": rows})


def measure(args: argparse.Namespace, rate: dict[str, float]) -> dict[str, Any]:
    """One point of the grid, printed and returned."""
    steps = build(args.variants, args)
    times = medians(steps, args.rounds, args.device)
    split = {
        name: parts(step, args.rounds, args.device)
        for name, step in steps.items()
        if name in ("ours", "per_layer", "auxk")
    }
    least = floor(args, rate)
    total = least["encoder_product"] + least["bytes"]
    print(f"\nL {args.layers}, d {args.d_model}, F {args.features}, k {args.k}, {args.tokens} tokens, {args.dtype}")
    print(f"  floor {total:.3f} s (encoder product {least['encoder_product']:.3f}, bytes {least['bytes']:.3f})")
    row: dict[str, Any] = {
        "point": {key: getattr(args, key) for key in ("layers", "d_model", "features", "k", "tokens")}
    }
    row |= {"dtype": args.dtype, "seconds": times, "parts": split, "floor": least}
    ours = times.get("ours")
    for name, value in times.items():
        ratio = f"{value / ours:6.2f} x ours" if ours else ""
        detail = "".join(f", {part} {s:.3f}" for part, s in split.get(name, {}).items())
        print(f"  {name:<10} {value:8.3f} s  {ratio}  {value / total:5.2f} x floor{detail}")
    steps.clear()
    if args.memory:
        row["memory"] = {name: peak_memory(name, args) for name in args.variants}
        for name, figures in row["memory"].items():
            beyond = figures["beyond_weights_gradients_state"] / 1e9
            print(
                f"  {name:<10} peak {figures['peak'] / 1e9:.2f} GB, beyond weights + gradients + state {beyond:.2f} GB"
            )
    return row


if __name__ == "__main__":
    main()

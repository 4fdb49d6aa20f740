"""`python -m benchmarks.gpu`: everything about a GPU in one command, under nine minutes: one table, and JSON.

Parts: kernels (against the dense reference, in float64), crossover (of the sparse and the dense decoder), steps
(against a floor in the type that runs), waits (of the host for the device), memory, fit (bf16-mixed, with the cascade,
resumed), stream (ViT-B/32 end to end) and nccl (one process). A part that fails is a row that says so.
`--dry` runs every part on a CPU at toy size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import step, stream
from benchmarks.common import machine, rates, seconds, write
from clt_lightning.parallel import ShardedTranscoder, Shards, plan
from clt_lightning.transcoder import AbsTopK, Activation, BatchTopK, CrossLayerTranscoder, JumpReLU, ReLU, TopK
from clt_lightning.transcoder.costs import sparse_below

Row = tuple[str, str]


def sizes(options: argparse.Namespace, features: int, k: int | None = None, dtype: str = "bf16") -> argparse.Namespace:
    """The options of `benchmarks.step` for one point."""
    dry = options.dry
    return argparse.Namespace(
        layers=3 if dry else 12,
        d_model=16 if dry else 768,
        features=features // 96 if dry else features,
        tokens=64 if dry else 4096,
        k=k or (4 if dry else 64),
        dtype=dtype,
        device=options.device,
    )


def kernels(options: argparse.Namespace) -> list[Row]:
    """Largest relative error of y_hat and of all gradients against the dense path in float64."""
    rows = []
    layers, d, features, tokens = (2, 16, 96, 40) if options.dry else (4, 256, 2048, 512)
    activations: list[Activation] = [ReLU(), TopK(8), AbsTopK(8), BatchTopK(8), JumpReLU(1.5, 0.5)]
    for activation in activations:
        for autocast in (False, True):
            found = []
            for backend in ("dense", "sparse"):
                clt = CrossLayerTranscoder(layers, d, features, activation, backend=backend, seed=0)
                generator = torch.Generator().manual_seed(1)
                with torch.no_grad():
                    for W in clt.W_dec:
                        W.copy_(torch.randn(W.shape, generator=generator) / 8)
                x = torch.randn(layers, tokens, d, generator=generator)
                exact = backend == "dense"
                clt, x = (clt.double(), x.double()) if exact else (clt, x)
                clt, x = clt.to(options.device), x.to(options.device)
                with torch.autocast(options.device, torch.bfloat16, enabled=autocast and not exact):
                    y = clt(x).y_hat
                y.square().mean().backward()
                parts = [y.detach(), *(p.grad for p in clt.parameters() if p.grad is not None)]
                found.append([part.double() for part in parts])
            errors = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for b, a in zip(*found)]
            name = f"{type(activation).__name__}, {'bf16' if autocast else 'fp32'}"
            rows.append((name, f"error {max(errors):.1e}{'' if max(errors) < 1e-3 else '  TOO LARGE'}"))
    return rows


@contextmanager
def _decoding(densely: bool) -> Iterator[None]:
    """While active, one decoder is taken whatever the cost model says."""

    def chosen(self: CrossLayerTranscoder, codes: Any, low: Any) -> bool:
        return densely

    plain = CrossLayerTranscoder._decodes_densely
    CrossLayerTranscoder._decodes_densely = chosen  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        CrossLayerTranscoder._decodes_densely = plain  # type: ignore[method-assign]


def crossover(options: argparse.Namespace) -> list[Row]:
    """A step with the sparse and with the dense decoder, and what the cost model says."""
    rows = []
    for features in (3072, 6144, 12288, 24576)[: 2 if options.dry else 4]:
        args = sizes(options, features)
        one = step.build(["ours"], args)["ours"]
        times = {}
        for way in ("sparse", "dense"):
            with _decoding(way == "dense"):
                one()
                times[way] = min(seconds(one, options.device) for _ in range(3))
        share = args.k / args.features
        chosen = "sparse" if share < sparse_below(options.device, torch.bfloat16, args.tokens) else "dense"
        faster = min(times, key=lambda way: times[way])
        told = f"sparse {1e3 * times['sparse']:.1f} ms, dense {1e3 * times['dense']:.1f} ms; the model says {chosen}"
        rows.append((f"F {args.features}, k {args.k}", told + ("" if chosen == faster else "  (WRONG)")))
        del one
    return rows


def steps(options: argparse.Namespace) -> list[Row]:
    """A training step, its parts, and the floor in the type that its products run in."""
    rows = []
    for features in (6144, 24576):
        for dtype in ("bf16", "fp32"):
            args = sizes(options, features, dtype=dtype)
            one = step.build(["ours"], args)["ours"]
            for _ in range(3):
                one()
            whole = min(seconds(one, options.device) for _ in range(5))
            split = step.parts(one, 3, options.device)
            kind = torch.bfloat16 if dtype == "bf16" else torch.float32
            least = step.floor(args, rates(options.device, kind))
            total = least["encoder_product"] + least["bytes"]
            parts = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in split.items())
            told = f"{1e3 * whole:.1f} ms = {whole / total:.2f} x floor ({parts}); {args.tokens / whole:,.0f} tokens/s"
            rows.append((f"F {args.features}, {dtype}", told))
            del one
    return rows


def waits(options: argparse.Namespace) -> list[Row]:
    """How often a step waits for the device, as torch's own debug mode tells it."""
    rows = []
    for activation in (TopK, BatchTopK):
        args = sizes(options, 6144)
        one = step.build(["ours"], args)["ours"]
        one.clt.activation = activation(args.k)
        one.clt.activation.build(args.layers, args.features)
        one.clt.to(options.device)
        one()
        if options.device != "cuda":
            rows.append((activation.__name__, "counted on a GPU alone"))
            continue
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                one()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        count = sum("synchroniz" in str(warning.message) for warning in told)
        rows.append((activation.__name__, f"{count} times per step"))
    return rows


#: How much more than `plan` says a step may take
OVER_PLAN = 1.25


def memory(options: argparse.Namespace) -> list[Row]:
    """The peak of a step, against what `plan` says of it: weights, gradients and moments, and all that is beside them.

    On a CPU the same from what torch's allocator tells the profiler.

    Raises:
        RuntimeError: it takes much more than `plan` says.
    """
    rows = []
    for features in (6144, 24576) if options.dry or torch.cuda.mem_get_info()[1] > 6e10 else (6144,):
        args = sizes(options, features)
        shape = plan.Shape(args.layers, args.d_model, 1, args.features, args.k, tower=0)
        on_paper = plan.make_plan(shape, plan.Machine(), 1, 1, args.tokens)
        one = step.build(["ours"], args)["ours"]
        for _ in range(2):
            one()
        held = sum(p.numel() * p.element_size() for p in one.clt.parameters()) * 4
        held += 2 * one.x.numel() * one.x.element_size()  # x and y, which `plan` counts among the activations
        peak = held + peak_beside(one, options.device)
        told = f"peak {peak / 1e9:.3g} GB; plan {on_paper.memory / 1e9:.3g} GB"
        if peak > OVER_PLAN * on_paper.memory:
            raise RuntimeError(f"F {args.features}: {told}")
        rows.append((f"F {args.features}", f"{told}, {peak / on_paper.memory:.2f} of it"))
        del one
    return rows


def peak_beside(one: Callable[[], None], device: str) -> int:
    """Bytes that a step holds at its height beside what was there before it."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        one()
    records = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(records, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def fit(options: argparse.Namespace) -> list[Row]:
    """The quickstart in bf16-mixed, with the cascade from the start; then on from its checkpoint."""
    rows = []
    accelerator = "gpu" if options.device == "cuda" else "cpu"
    n, first, last = (48, 2, 3) if options.dry else (2048, 30, 40)
    with tempfile.TemporaryDirectory() as root:
        common = [
            *("fit", "--config", str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")),
            *("--trainer.precision=bf16-mixed", f"--trainer.accelerator={accelerator}", "--trainer.devices=1"),
            *(f"--data.init_args.root={root}/data", f"--data.init_args.n_train={n}", "--data.init_args.n_test=16"),
            *("--data.init_args.num_workers=0", "--data.init_args.batch_size=16", "--model.loss.cascade.start=0"),
            *("--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={root}/runs"),
            *(["--model.transcoder.n_features=96", "--model.tokens.statistics=64"] if options.dry else []),
        ]
        for name, more in (("fit", [f"--trainer.max_steps={first}"]), ("resumed", [f"--trainer.max_steps={last}"])):
            resume = ["--ckpt_path=last"] if name == "resumed" else []
            start = time.perf_counter()
            words = [sys.executable, "-m", "clt_lightning", *common, *more, *resume]
            done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
            said = (done.stderr or done.stdout).strip().splitlines()
            told = "" if done.returncode == 0 else f"FAILED: {said[-1] if said else done.returncode}"
            rows.append((name, told or f"{time.perf_counter() - start:.0f} s, start and end included"))
    return rows


def streamed(options: argparse.Namespace) -> list[Row]:
    """Images a second from tars through CLIP and the step."""
    dry = options.dry
    args = argparse.Namespace(
        name="ViT-B-32-quickgelu",
        pretrained="demo" if dry else None,
        precision="fp32" if dry else "bf16",
        autocast=True,
        features=96 if dry else 6144,
        k=4 if dry else 64,
        batch_size=4 if dry else 82,
        steps=1 if dry else 20,
        num_workers=0 if dry else 8,
        render_size=32 if dry else 224,
        device=options.device,
    )
    with tempfile.TemporaryDirectory() as root:
        found = stream.run(args, root)
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in found["share"].items())
    return [(f"{args.batch_size} images", f"{found['images_per_second']:.0f} images/s ({shares})")]


def nccl(options: argparse.Namespace) -> list[Row]:
    """A transcoder divided over a group of one process gives the numbers of a plain one."""
    backend = "nccl" if options.device == "cuda" else "gloo"
    if dist.is_initialized():  # a trainer leaves its group behind
        dist.destroy_process_group()
    with tempfile.TemporaryDirectory() as root:
        dist.init_process_group(backend, init_method=f"file://{root}/meet", rank=0, world_size=1)
        try:
            x = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0)).to(options.device)
            plain = CrossLayerTranscoder(3, 32, 256, TopK(8), seed=0).to(options.device)
            divided = ShardedTranscoder(Shards.of_group(), 3, 32, 256, TopK(8), seed=0).to(options.device)
            same = torch.equal(plain.encode(x).dense(), divided.encode(x).dense())
        finally:
            dist.destroy_process_group()
    return [(backend, "codes equal" if same else "codes DIFFER")]


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "kernels": kernels,
    "crossover": crossover,
    "steps": steps,
    "waits": waits,
    "memory": memory,
    "fit": fit,
    "stream": streamed,
    "nccl": nccl,
}


def main(words: list[str] | None = None) -> int:
    """Runs the parts; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--dry", action="store_true", help="on a CPU, at toy size")
    parser.add_argument("--minutes", type=float, default=8.5, help="no part begins after so many")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args(words)
    if not options.dry and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured. --dry runs every part on a CPU, at toy size")
        return 1
    options.device = "cpu" if options.dry else "cuda"
    info, start = machine(options.device), time.perf_counter()
    print(info, flush=True)
    result: dict[str, Any] = {"machine": info, "dry": options.dry, "parts": {}}
    failed = False
    for name in options.parts:
        began = time.perf_counter()
        if began - start > 60 * options.minutes:
            rows = [("", f"left out: {options.minutes:g} minutes were over")]
        else:
            try:
                rows = PARTS[name](options)
            except Exception as error:  # the other parts are worth their time all the same
                rows = [("", f"FAILED: {type(error).__name__}: {error}")]
        failed = failed or any(word in told for _, told in rows for word in ("FAILED", "TOO LARGE", "DIFFER"))
        result["parts"][name] = {"rows": rows, "seconds": time.perf_counter() - began}
        for label, told in rows:
            print(f"  {name:<10} {label:<22} {told}", flush=True)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    write(options.json, result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What the benchmarks share: the machine, its measured rates, medians of interleaved rounds, JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch


def machine(device: str) -> dict[str, Any]:
    """What ran the benchmark."""
    info: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0") == "1",
    }
    return info


def _cpu_name() -> str:
    name = platform.processor() or "CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def silent_trainer(max_steps: int = -1, **options: Any) -> lightning.Trainer:
    """A trainer on one CPU that validates, logs, saves and shows nothing by itself."""
    defaults: dict[str, Any] = {
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(max_steps=max_steps, **(defaults | options))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def clock(device: str) -> float:
    """Seconds: of the process on a CPU's only thread, which other work on the machine hardly moves; else the wall's."""
    synchronize(device)
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def seconds(fn: Callable[[], Any], device: str) -> float:
    """Seconds of one call, by `clock`."""
    start = clock(device)
    fn()
    return clock(device) - start


def medians(variants: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each variant over interleaved rounds, so that a busy moment hits all of them.

    In a round each variant first runs unmeasured, for two seconds at least: the gigabytes that the one before it freed
    keep the system busy for a while.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, fn in variants.items():
            start = time.perf_counter()
            while time.perf_counter() - start < 2.0:
                fn()
            times[name].append(seconds(fn, device))
    return {name: statistics.median(values) for name, values in times.items()}


def rates(device: str, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Measured rates of this machine: matrix products in FLOP/s, copies in bytes/s (read + written).

    The product has the encoder's shape, the copy is much larger than the caches.
    """
    a = torch.randn(512, 768, device=device, dtype=dtype)
    b = torch.randn(6144, 768, device=device, dtype=dtype)
    product = min(seconds(lambda: a @ b.T, device) for _ in range(7))
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(5))
    return {"product": 2 * 512 * 768 * 6144 / product, "copy": 2 * source.numel() * 4 / copy}


def write(path: str | None, result: dict[str, Any]) -> None:
    """Writes the result as JSON, if a path was given."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(result, indent=2) + "\n")
        print(f"wrote {path}")

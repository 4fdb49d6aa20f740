"""A run small enough to be killed many times: a tiny CLIP on disk, a few renders in tars, and the command line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.backbone.clip.tiny import tiny_config, write_tiny

STEPS = 14


def write_data(folder: Path) -> Path:
    """Noise in tars: 52 images of 4 classes to train on, in 3 shards, and 12 to test on."""
    rng = np.random.default_rng(0)
    for split, sizes in (("train", (20, 20, 12)), ("test", (12,))):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for shard, size in enumerate(sizes):
            with tarfile.open(folder / split / f"{shard}.tar", "w") as tar:
                for i in range(size):
                    png = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(png, "PNG")
                    for suffix, content in (("png", png.getvalue()), ("cls", str(i % 4).encode())):
                        info = tarfile.TarInfo(f"{split}{shard}-{i:03d}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        (folder / split / "nshards.txt").write_text(f"{len(sizes)}\n")
    (folder / "classnames.txt").write_text("red cat\nblue cat\nred dog\nblue dog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a drawing of a {c}\n")
    return folder


def write_config(folder: Path, **overrides: Any) -> Path:
    """A config whose run takes two epochs and a bit, validates every 5 steps, and shuffles in every way there is.

    Args:
        folder: gets the CLIP, the data (on first use) and the runs.
        overrides: whole sections, merged over the defaults, key by key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clip = write_tiny(folder, tiny_config())
    config: dict[str, Any] = {
        "name": "run",
        "runs_dir": str(folder / "runs"),
        "seed_everything": 3,
        "model": {
            "backbone": {"name": "tiny", "pretrained": str(clip), "precision": "fp32"},
            "transcoder": {"n_features": 64, "activation": {"class_path": "BatchTopK", "init_args": {"k": 6}}},
            "loss": {"auxk": {"dead_after_tokens": 200}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "schedule": {"warmup_steps": 4, "decay": "cosine", "decay_fraction": 0.8},
            "tokens": {"per_image": 9, "buffer": 200, "statistics": 64},
        },
        "data": {
            "class_path": "WebImages",
            "init_args": {
                "root": str(write_data(folder / "data")),
                "batch_size": 8,
                "num_workers": 2,
                "shuffle": 10,
                "augment": "flip",
            },
        },
        "trainer": {
            "max_steps": STEPS,
            "accelerator": "cpu",
            "devices": 1,
            "val_check_interval": 5,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "checkpoints": {"last_every_n_steps": 2},
        "figures": {"every": 0},  # they would take most of the time
    }
    config = merged(config, overrides)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: merged(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v
        for k, v in above.items()
    }
    return below | both


def command(config: Path, *words: str, subcommand: str = "fit") -> list[str]:
    return [sys.executable, "-m", "clt_lightning", subcommand, "--config", str(config), *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(config: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, to its end."""
    return subprocess.run(
        command(config, *words), capture_output=True, text=True, env=environment(), check=False, **options
    )


def state(path: Path) -> dict[str, Any]:
    """What decides how a run goes on: weights, counters, optimizer, schedule, places in the data."""
    content = torch.load(path, weights_only=True)
    names = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "batches_seen")
    found = {name: content[name] for name in names} | {"data": content["loops"]["fit_loop"]["state_dict"]}
    return found | {"activation_buffer": content.get("activation_buffer")}  # a run without one has none


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places where two nested states differ, bit for bit."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        same = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a!r} and {b!r}"]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

"""`python -m benchmarks.sweep`: a sweep of four against its members one after the other, whole commands.

Times are the processes' CPU times (user and system, workers included), which other work on the machine hardly
moves.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import machine, write

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def cpu_seconds(words: list[str], folder: Path) -> float:
    """CPU time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "clt_lightning", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--ks", type=int, nargs="+", default=[6, 8, 12, 16])
    parser.add_argument("--backbone", default="", help="an open_clip model with random weights; default: the demo's")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = "model.transcoder.activation.init_args.k"
        (folder / "sweep.yaml").write_text(yaml.safe_dump({"grid": {key: args.ks}}))
        steps = [f"--trainer.max_steps={args.steps}", f"--trainer.val_check_interval={args.steps}"]
        data = ["--data.init_args.n_train=2000", "--data.init_args.n_test=200"]
        words = ["fit", "--config", str(CONFIG), *steps, *data, "--curves.every_n_steps=0"]
        if args.backbone:
            words += [f"--model.backbone.init_args.name={args.backbone}", "--model.backbone.init_args.pretrained=null"]
        cpu_seconds([*words, "--name=warm", "--trainer.max_steps=2", "--trainer.val_check_interval=2"], folder)  # tars
        alone = [cpu_seconds([*words, f"--name=k{k}", f"--{key}={k}"], folder) for k in args.ks]
        together = cpu_seconds([*words, "--name=all", "--sweep", "sweep.yaml"], folder)
    result: dict[str, Any] = {"alone": alone, "together": together, "ratio": sum(alone) / together}
    print(f"one after the other {sum(alone):.1f} s, as a sweep {together:.1f} s of CPU time: {result['ratio']:.2f} x")
    if args.output:
        write(args.output, {"machine": machine("cpu"), "steps": args.steps, **result})


if __name__ == "__main__":
    main()

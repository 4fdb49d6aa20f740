"""Kills a run again and again until it has had enough, and compares it with one that nobody disturbed.

    python -m tests.runs.kill_many --kills 20 --workers 2
    python -m tests.runs.kill_many --kills 20 --accumulate 3 --every 2 --interval 7 --moment first

Prints one line a kill and exits with 1 unless the weights (and everything else that decides how a run goes on) are
equal bit for bit, nothing is left half-written, and TensorBoard shows every step once.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clt_lightning.runs.resume import find
from tests.runs.starts import finish, kill, start
from tests.runs.world import differences, scalars, state, write_config


@dataclass(frozen=True)
class Plan:
    """A run, and how it is killed.

    Attributes:
        kills: how many SIGKILLs.
        workers: data worker processes.
        steps: optimizer steps of the run.
        accumulate: batches a step.
        every: steps between two `last.ckpt`.
        interval: batches between two validations; no multiple of `accumulate` puts some into the middle of a step.
        moment: `random`, or `first`: right after each start's first `last.ckpt`.
        seed: seed of the moments.
    """

    kills: int = 20
    workers: int = 2
    steps: int = 150
    accumulate: int = 1
    every: int = 2
    interval: int = 15
    moment: str = "random"
    seed: int = 0


def wait(process: Any, last: Path, plan: Plan, rng: random.Random) -> None:
    """Waits for the moment to kill, or until the process ends.

    At random: until `last` was written some number of times, and then a little.
    """

    def stamp() -> int:
        return last.stat().st_mtime_ns if last.exists() else 0

    first = plan.moment == "first"
    before, writes = stamp(), 1 if first else rng.randint(0, max(1, plan.steps // (2 * plan.kills)))
    while writes and process.exitcode is None:
        time.sleep(0.002)
        if stamp() != before:
            before, writes = stamp(), writes - 1
    if not first:
        process.join(rng.uniform(0.0, 3.0) if not before else rng.uniform(0.0, 0.5))


def stress(folder: Path, plan: Plan) -> list[str]:
    """Runs both.

    Args:
        folder: an empty one.
        plan: the run, and how it is killed.

    Returns:
        What is wrong; empty if all is well.
    """
    overrides = {
        "data": {"init_args": {"num_workers": plan.workers}},
        "trainer": {
            "max_steps": plan.steps,
            "val_check_interval": plan.interval,
            "accumulate_grad_batches": plan.accumulate,
        },
        "checkpoints": {"last_every_n_steps": plan.every},
    }
    config = write_config(folder, **overrides)
    log = folder / "log.txt"
    began = time.monotonic()
    assert finish(["fit", "--config", str(config), "--name", "calm"], log, 600) == 0, log.read_text()[-3000:]
    print(f"undisturbed: {plan.steps} steps in {time.monotonic() - began:.1f} s", flush=True)

    rng = random.Random(plan.seed)
    words = ["fit", "--config", str(config), "--name", "killed", "--ckpt_path", "last"]
    checkpoints = folder / "runs" / "killed" / "version_0" / "checkpoints"
    done = ended = half = 0
    while done < plan.kills:
        process = start(words, log)
        wait(process, checkpoints / "last.ckpt", plan, rng)
        if process.exitcode is not None:
            assert process.exitcode == 0, log.read_text()[-3000:]
            ended += 1
            if ended > 3:
                return [f"the run ended after {done} kills: take more --steps"]
            continue
        kill(process)
        done += 1
        found = find("last", checkpoints) if checkpoints.exists() else None
        left = [p.name for p in checkpoints.glob(".*")] if checkpoints.exists() else []
        half += bool(left)
        when = "no checkpoint yet" if found is None else f"{found.path.name} of step {found.step}"
        due = ", before a validation" if found and found.validation_due else ""
        print(f"kill {done:2d}: {when}{due}{', half-written: ' + ', '.join(left) if left else ''}", flush=True)
    assert finish(words, log, 600) == 0, log.read_text()[-3000:]
    assert finish(words, log) == 0, "resuming a finished run"
    print(
        f"finished after {done} kills, {half} of them while a checkpoint was written; {time.monotonic() - began:.0f} s"
    )

    calm, killed = (folder / "runs" / name for name in ("calm", "killed"))
    wrong = [f"versions: {sorted(p.name for p in killed.iterdir())}"] if len(list(killed.iterdir())) > 1 else []
    calm, killed = calm / "version_0", killed / "version_0"
    wrong += differences(state(calm / "checkpoints" / "last.ckpt"), state(killed / "checkpoints" / "last.ckpt"))
    names = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (calm, killed)]
    if names[0] != names[1]:
        wrong.append(f"files: {names[0]} and {names[1]}")
    expected, shown = scalars(calm), scalars(killed)
    for tag in ("train/loss", "val/fvu/all", "val/zero_shot/replaced/0-2/all"):
        twice = [step for step, n in collections.Counter(step for step, _ in shown[tag]).items() if n > 1]
        other = sorted(set(shown[tag]) - set(expected[tag]))
        lost = len(set(expected[tag]) - set(shown[tag]))
        print(f"{tag}: {len(shown[tag])} of {len(expected[tag])} points, {lost} lost, {len(twice)} twice")
        wrong += [f"{tag}: steps {twice} twice"] if twice else []
        wrong += [f"{tag}: {other[:3]} not in the undisturbed run"] if other else []
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {
        "kills": "SIGKILLs",
        "workers": "data worker processes",
        "steps": "optimizer steps of the run",
        "accumulate": "batches a step",
        "every": "steps between two last.ckpt",
        "interval": "batches between two validations",
        "seed": "seed of the moments",
    }
    for name, text in options.items():
        default = getattr(Plan, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument(
        "--moment", choices=("random", "first"), default="random", help="first: right after a start's first last.ckpt"
    )
    plan = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        wrong = stress(Path(folder), plan)
    print("\n".join(wrong) if wrong else "equal bit for bit")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

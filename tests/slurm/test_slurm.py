"""`slurm/train.sbatch` on a real Slurm: two tasks, signalled, requeued by Slurm, and equal to an undisturbed run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clt_lightning.runs.resume import find
from tests.runs.world import differences, scalars, state, write_config

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("start_slurm.sh")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [p for p in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(p, path=PATH) is None]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"needs Slurm (apt-get install slurm-wlm munge): no {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: munged and slurmd are started here"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client; Slurm runs while it is used."""
    folder = tmp_path_factory.mktemp("slurm")
    done = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PYTEST"))}
    yield {
        **kept,
        "PATH": PATH,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
    }
    subprocess.run([SCRIPT, "stop", folder], check=True)


def slurm_says(slurm: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=slurm, capture_output=True, text=True, check=True).stdout


def submit(slurm: dict[str, str], folder: Path, *words: str) -> str:
    told = slurm_says(
        slurm, "sbatch", "--parsable", f"--chdir={ROOT}", "--cpus-per-task=1", f"--output={folder}/%j.out", *words
    )
    return told.strip()


def field(slurm: dict[str, str], job: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", slurm_says(slurm, "scontrol", "show", "job", job))
    assert found, name
    return found[1]


def wait(
    slurm: dict[str, str], job: str, folder: Path, states: tuple[str, ...] = ("COMPLETED",), seconds: int = 240
) -> None:
    end = time.monotonic() + seconds
    while (now := field(slurm, job, "JobState")) not in states:
        texts = "\n".join(p.read_text()[-3000:] for p in [*folder.glob("*.out"), *folder.rglob("logs/*.log")])
        assert now in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), f"{now}\n{texts}"
        assert time.monotonic() < end, f"{now} after {seconds} s\n{texts}"
        time.sleep(0.5)


def test_a_signalled_job_is_requeued_and_ends_like_an_undisturbed_one(tmp_path: Path, slurm: dict[str, str]) -> None:
    config = write_config(
        tmp_path,
        trainer={"max_steps": 80, "strategy": "ddp", "val_check_interval": 20},
        data={"init_args": {"num_workers": 1, "batch_size": 4}},
        checkpoints={"last_every_n_steps": None},
    )
    env = {**slurm, "RUNS_DIR": str(tmp_path / "runs")}
    words = ["--ntasks-per-node=2", "slurm/train.sbatch", str(config)]

    calm = submit({**env, "RUN_NAME": "calm", "RUN_VERSION": "0"}, tmp_path, *words)
    wait(slurm, calm, tmp_path)

    job = submit({**env, "RUN_NAME": "moved"}, tmp_path, *words)
    run = tmp_path / "runs" / "moved" / f"version_{job}"  # known before the first start
    first = run / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 120
    while not first.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    slurm_says(slurm, "scancel", "--signal=USR1", job)  # what Slurm sends by itself 300 s before the limit
    while field(slurm, job, "Restarts") == "0":
        assert time.monotonic() < end
        time.sleep(0.2)
    stopped = find("last", run / "checkpoints")
    assert stopped is not None
    assert 20 <= stopped.step < 80
    wait(slurm, job, tmp_path)

    assert sorted(p.name for p in (run / "logs").iterdir()) == ["0-0.log", "0-1.log", "1-0.log", "1-1.log"]
    assert f"stopped by SIGUSR1 after step {stopped.step}" in (run / "logs" / "0-0.log").read_text()
    expected = tmp_path / "runs" / "calm" / "version_0"
    assert differences(state(expected / "checkpoints/last.ckpt"), state(run / "checkpoints/last.ckpt")) == []
    shown, again = scalars(expected), scalars(run)
    assert again["val/fvu/all"] == shown["val/fvu/all"]
    steps = [step for step, _ in again["train/loss"]]
    assert len(steps) == len(set(steps))
    assert [p.name for p in run.parent.iterdir()] == [run.name]


def test_each_task_of_an_array_takes_its_line(tmp_path: Path, slurm: dict[str, str]) -> None:
    """An array of two configs."""
    config = write_config(tmp_path, data={"init_args": {"num_workers": 0}}, checkpoints={"last_every_n_steps": None})
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("--model.transcoder.n_features 32\n--model.transcoder.n_features 48\n")
    env = {**slurm, "RUNS_DIR": str(tmp_path / "runs"), "RUN_NAME": "sweep"}
    job = submit(env, tmp_path, "--array=0-1", "slurm/train.sbatch", str(config), str(sweep))
    for task, features in ((0, 32), (1, 48)):
        wait(slurm, f"{job}_{task}", tmp_path)
        run = tmp_path / "runs" / f"sweep-{task}" / f"version_{job}"
        assert state(run / "checkpoints" / "last.ckpt")["state_dict"]["transcoder.b_enc"].shape[1] == features

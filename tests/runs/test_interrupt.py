"""Ctrl-C: the first one ends the step, saves it and says how to go on; the second one stops at once."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.callbacks import ExportTranscoder
from clt_lightning.callbacks.measuring import SplitPass
from clt_lightning.cli.main import main
from clt_lightning.data.sets.base import WebImages
from clt_lightning.runs.folder import LAST
from clt_lightning.runs.resume import find
from clt_lightning.runs.signals import Interrupt
from clt_lightning.training.module import CLTModule

from .world import differences, environment, scalars, state, write_config

ROOT = Path(__file__).parents[2]


def interrupt_in(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int = 1, how: Callable[[], None] | None = None
) -> None:
    """Sends Ctrl-C from within the n-th call of a method."""
    real, calls = getattr(owner, name), [0]

    def method(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            (how or press)()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def press_in_a_finalizer() -> None:
    """Where Python swallows the exception that a handler raises."""

    class Finalized:
        def __del__(self) -> None:
            press()

    Finalized()


def press_in_a_log_handler() -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            press()

    log = logging.getLogger("test_interrupt")
    log.addHandler(Handler())
    log.warning("a line")


def code_of(words: list[str]) -> int | None:
    try:
        main(words)
    except SystemExit as stopped:
        return int(str(stopped.code))
    return None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, data={"init_args": {"num_workers": 0}}, checkpoints={"last_every_n_steps": None})


# where a fit is interrupted, and after which step it stops: two validation batches after steps 5, 10 and 14
MOMENTS: list[tuple[type, str, int, Callable[[], None], int]] = [
    (CLTModule, "training_step", 2, press, 2),
    (CLTModule, "training_step", 1, press_in_a_log_handler, 3),
    (CLTModule, "training_step", 1, press_in_a_finalizer, 4),
    (SplitPass, "take", 1, press, 5),
    (SplitPass, "take", 4, press, 10),
    (ExportTranscoder, "on_train_end", 1, press, 14),
    (SplitPass, "take", 2, press, 14),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fit_that_is_interrupted_again_and_again_ends_like_one_that_was_not(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", str(config), "--ckpt_path", "last"]
    main([*words, "--name", "calm"])
    runs = config.parent / "runs"
    for owner, name, call, how, step in MOMENTS:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            interrupt_in(patch, owner, name, call, how)
            assert code_of(words) == 130, (name, call)
        err = capfd.readouterr().err
        assert f"stopped by SIGINT after step {step}; the state is in {runs}" in err, (name, call)
        command = re.search(r"Go on with:\n  python -m clt_lightning (.*)\n", err)
        assert command is not None
        assert shlex.split(command[1]) == [*words[:3], "--ckpt_path", "last", "--version", "0"]
        found = find("last", runs / "run" / "version_0" / "checkpoints")
        assert found is not None
        assert found.step == step, (name, call)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert code_of(words) is None
    calm, run = (runs / name / "version_0" for name in ("calm", "run"))
    assert differences(state(calm / "checkpoints" / LAST), state(run / "checkpoints" / LAST)) == []
    assert sorted(p.name for p in run.rglob("*.ckpt")) == sorted(p.name for p in calm.rglob("*.ckpt"))
    assert [s for s, _ in scalars(run)["val/fvu/all"]] == [s for s, _ in scalars(calm)["val/fvu/all"]]
    assert not list(run.glob(".*"))


def test_in_the_set_up_it_stops_at_once_and_leaves_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("setup", "train_dataloader"):  # before the folder is claimed, and after
        with monkeypatch.context() as patch:
            interrupt_in(patch, WebImages, name)
            assert code_of(["fit", "--config", str(config)]) == 130
        assert "interrupted" in capsys.readouterr().err
        assert not (config.parent / "runs").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_loses_in_the_set_up_stops_after_the_first_step(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_in(monkeypatch, WebImages, "setup", 1, press_in_a_finalizer)
    assert code_of(["fit", "--config", str(config)]) == 130
    assert "stopped by SIGINT after step 1;" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_comes_when_all_is_done_still_ends_with_130(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in(monkeypatch, ExportTranscoder, "on_train_end")
    short = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    assert code_of(["fit", "--config", str(config), *short]) == 130
    assert (config.parent / "runs" / "run" / "version_0" / "transcoder" / "config.json").is_file()


def test_an_evaluation_stops_at_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    main(["fit", "--config", str(config), *short])
    run = config.parent / "runs" / "run" / "version_0"
    before = (run / "results.json").read_bytes()
    for command, step in (("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")):
        with monkeypatch.context() as patch:
            interrupt_in(patch, CLTModule, step)
            words = [command, "--run", str(run), "--trainer.limit_val_batches=1", "--evaluate.population.images=0"]
            assert code_of(words) == 130, command
        assert "interrupted" in capsys.readouterr().err
        assert (run / "results.json").read_bytes() == before
        assert not list(run.glob("*/.*"))
        assert not list(run.glob(".*"))


SLOW = """
import sys, time
from pathlib import Path
from clt_lightning.cli.main import main
from clt_lightning.training.module import CLTModule

def slow(self, batch, batch_idx, step=CLTModule.training_step):
    out = step(self, batch, batch_idx)
    if self.global_step == 1:
        Path(sys.argv[1]).touch()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.05)
    return out

CLTModule.training_step = slow
main(sys.argv[2:])
"""


def test_the_second_one_stops_at_once(config: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = [sys.executable, "-c", SLOW, str(begun), "fit", "--config", str(config)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not begun.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)  # the same one, forwarded by a program in between
        time.sleep(Interrupt.SAME)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read().count("Ctrl-C again stops at once") == 1
    # nothing that would stop the next start: the kernel has freed the lock
    assert code_of(["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps", "2"]) is None
    assert [p.name for p in (config.parent / "runs" / "run").iterdir()] == ["version_0"]


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [True, False], ids=["terminal", "one-process"])
def test_two_processes_stop_after_the_same_step(config: Path, everyone: bool) -> None:
    """A terminal sends it to every process of the group, `kill` to one."""
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--throughput.progress_every_seconds=1e-9"]
    words = ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps=300", *two]
    command = [sys.executable, "-m", "clt_lightning", *words]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **options) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if re.match("step [4-9] ", line):
                break
        (os.killpg if everyone else os.kill)(process.pid, signal.SIGINT)
        lines += process.stdout.readlines()
        assert process.wait(60) == 130, "".join(lines[-40:])
    told = re.findall(r"stopped by SIGINT after step (\d+)", "".join(lines))
    assert len(told) == 1
    run = config.parent / "runs" / "run" / "version_0"
    found = find("last", run / "checkpoints")
    assert found is not None
    assert found.step == int(told[0])
    until = time.monotonic() + 60
    while is_there(process.pid) and time.monotonic() < until:  # helpers of the data workers see the end last
        time.sleep(0.2)
    assert not is_there(process.pid)


def is_there(group: int) -> bool:
    """Whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

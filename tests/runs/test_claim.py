"""Versions of a run are taken by one process each, locked while they are written, and gone if nothing came of them."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.runs.claim import Claim, require_writable
from clt_lightning.runs.folder import RunFolder
from clt_lightning.runs.lock import NAME, Lock, holder

fork = multiprocessing.get_context("fork")


def claim_and_keep(root: Path, start: Any, told: Any, end: Any) -> None:
    start.wait()
    claim = Claim.next(root)
    claim.begin()
    told.put(claim.folder.path.name)
    end.wait()


def test_starts_at_the_same_moment_get_a_version_each(tmp_path: Path) -> None:
    n = 12
    for attempt in range(4):
        root = tmp_path / str(attempt) / "runs" / "run"
        start, end, told = fork.Barrier(n), fork.Event(), fork.SimpleQueue()
        processes = [fork.Process(target=claim_and_keep, args=(root, start, told, end)) for _ in range(n)]
        for process in processes:
            process.start()
        names = sorted((told.get() for _ in range(n)), key=lambda name: int(name.removeprefix("version_")))
        end.set()
        for process in processes:
            process.join()
        assert names == [f"version_{i}" for i in range(n)]


def claim_and_fail(root: Path, seed: int, wrong: Any) -> None:
    rng = random.Random(seed)
    try:
        for _ in range(60):
            claim = Claim.next(root)
            mine = claim.folder.path / "mine"
            mine.touch(exist_ok=False)  # two in one version would meet here
            time.sleep(rng.uniform(0, 0.002))
            mine.unlink()
            claim.release()
    except (OSError, UserError) as error:
        wrong.put(repr(error))
    wrong.put(None)


def test_starts_that_fail_at_the_same_time_leave_nothing_and_never_meet(tmp_path: Path) -> None:
    root, n, wrong = tmp_path / "runs" / "run", 6, fork.SimpleQueue()
    processes = [fork.Process(target=claim_and_fail, args=(root, seed, wrong)) for seed in range(n)]
    for process in processes:
        process.start()
    said: list[str | None] = []
    while said.count(None) < n:
        said.append(wrong.get())
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert set(said) == {None}
    assert not list(tmp_path.rglob("*/*"))


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    Claim.next(tmp_path / "runs" / "run").release()
    assert list((tmp_path / "runs").iterdir()) == []
    logs = tmp_path / "runs" / "run" / "version_7" / "logs"  # as slurm/train.sbatch makes them
    logs.mkdir(parents=True)
    claim = Claim.of(RunFolder(logs.parent))
    assert not claim.fresh
    claim.release()
    assert [p.name for p in logs.parent.iterdir()] == ["logs"]
    claim = Claim.next(logs.parents[1])
    assert claim.folder.version == 8
    claim.begin()
    claim.release()
    assert claim.folder.path.is_dir()
    assert list(claim.folder.path.iterdir()) == []


def claim_and_wait(root: Path, told: Any) -> None:
    claim = Claim.next(root)
    child = fork.Process(target=time.sleep, args=(30,))  # such as a data worker, which may live on for a moment
    child.start()
    told.put((claim.folder.path.name, child.pid))
    time.sleep(30)


def killed_start(root: Path) -> tuple[str, int]:
    """A start that is killed in its set-up, and a child of it that lives on."""
    told = fork.SimpleQueue()
    process = fork.Process(target=claim_and_wait, args=(root, told))
    process.start()
    name, child = told.get()
    assert holder(root / name) is not None
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return name, child


def test_a_start_that_was_killed_stops_nobody(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "run"
    name, child = killed_start(root)
    try:
        os.kill(child, 0)
        assert (root / name / NAME).exists()
        assert holder(root / name) is None
        claim = Claim.next(root)
        assert claim.folder.path.name == name  # nothing was in it
        claim.begin()
        (claim.folder.path / "config.yaml").touch()
        claim.release()
        assert [p.name for p in (root / name).iterdir()] == ["config.yaml"]
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_other_process_is_named(tmp_path: Path) -> None:
    claim = Claim.of(RunFolder(tmp_path / "version_0"))
    other = holder(tmp_path / "version_0")
    assert other is not None
    assert (other.pid, other.host) == (os.getpid(), socket.gethostname())
    with pytest.raises(
        UserError, match=rf"version_0 is being written by process {os.getpid()} on {socket.gethostname()} "
    ):
        Claim.of(RunFolder(tmp_path / "version_0"))
    claim.release()
    assert holder(tmp_path / "version_0") is None
    Claim.of(RunFolder(tmp_path / "version_0")).release()


def test_a_look_at_a_lock_takes_it_from_nobody(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    stop = fork.Event()

    def look() -> None:
        while not stop.is_set():
            holder(tmp_path)

    process = fork.Process(target=look)
    process.start()
    try:
        for _ in range(50):
            lock = Lock(tmp_path)
            lock.acquire()
            lock.release()
    finally:
        stop.set()
        process.join()


def test_without_locks_the_file_has_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    record = '{{"host": "{}", "pid": {}, "since": "now", "command": "fit"}}'
    lock = Lock(tmp_path)
    for host, pid in ((socket.gethostname(), os.getppid()), ("another", 1)):
        (tmp_path / NAME).write_text(record.format(host, pid))
        if host == "another":  # it may be dead, and a requeued job must go on
            lock.acquire()
            assert "process 1 on another (fit, since now) may still write here" in caplog.text
        else:
            with pytest.raises(UserError, match=f"process {pid} on {host}"):
                lock.acquire()
    lock.release()
    process = fork.Process(target=os.getpid)
    process.start()
    process.join()
    (tmp_path / NAME).write_text(record.format(socket.gethostname(), process.pid))
    assert lock.attempt()
    lock.release()
    # a version that somebody has made and not yet written to is not taken over
    (tmp_path / "version_0").mkdir()
    assert Claim.next(tmp_path).folder.version == 1


def test_a_place_that_cannot_be_written_is_told_before_and_nothing_is_made(tmp_path: Path) -> None:
    require_writable(tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs \(a file stands where a folder should be\): .*--runs_dir"):
        require_writable(tmp_path / "file" / "runs")
    with pytest.raises(UserError, match="a file stands where a folder should be"):
        Claim.next(tmp_path / "file" / "runs")

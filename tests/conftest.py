"""Fixtures for the whole suite."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import socket
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

# before Lightning sets it to all cores for one process, and for every process that is started afterwards
os.environ["OMP_NUM_THREADS"] = "1"
# Processes that tests start come from a server that has imported everything once: an import of Lightning takes seconds.
# Nothing may start it before this is said.
multiprocessing.set_forkserver_preload(["clt_lightning.cli.trainer", "tests.parallel.scenes"])

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
HARDWARE = ("gpu", "slurm")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that is skipped has failed: everything that tests need is installed there, but for hardware."""
    report = yield
    if IN_CI and report.skipped and not any(item.get_closest_marker(name) for name in HARDWARE):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: not to be skipped in CI. {reason}"
    return report


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run side by side on two cores: one thread each, whatever the one before has set."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _lightning_is_heard() -> None:
    """Whether `caplog` hears Lightning hangs on when it was imported: in a test, or while tests were collected."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).propagate = True


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files need not outlive a power cut here; what is asked of the disk is tested where it is the subject."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


# Two launches that meet on one port would join each other and hang: each process of tests, an xdist worker or another
# run on this machine, begins elsewhere, below the ephemeral range, where nothing else takes a port in between.
_PORTS = range(12_000, 32_000)
_numbers = itertools.count(97 * os.getpid())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


@pytest.fixture(autouse=True)
def _own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port for processes that a test starts, and none of what Lightning leaves behind after a launch in this one."""
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)  # a process that finds them waits for others
    ports = (_PORTS[number % len(_PORTS)] for number in _numbers)
    monkeypatch.setenv("MASTER_PORT", str(next(port for port in ports if _is_free(port))))


@pytest.fixture(scope="session")
def demo_tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo set: 256 training renders, 75 held-out ones (an odd number, on purpose)."""
    from clt_lightning.data import Demo

    root = tmp_path_factory.mktemp("demo")
    Demo(root=str(root), n_train=256, n_test=75, world=5).prepare_data()
    return root

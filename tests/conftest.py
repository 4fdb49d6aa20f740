"""Fixtures for the whole suite."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(scope="session", autouse=True)
def _two_cores() -> None:
    """Tests run side by side: one thread each, and no spinning threads."""
    torch.set_num_threads(1)


# a range of its own for each xdist worker: two launches that meet on one port would join each other and hang
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_ports = itertools.count(20_000 + 1_500 * _worker)


@pytest.fixture(autouse=True)
def _own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port below the ephemeral range for processes that a test starts: nothing else takes it in between."""
    monkeypatch.setenv("MASTER_PORT", str(next(_ports)))


@pytest.fixture(scope="session")
def demo_tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo set: 256 training renders, 75 held-out ones (an odd number, on purpose)."""
    from clt_lightning.data import Demo

    root = tmp_path_factory.mktemp("demo")
    Demo(root=str(root), n_train=256, n_test=75, world=5).prepare_data()
    return root

"""The flag that a signal sets, Slurm's job names, and what comes of asking for a requeue."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from clt_lightning.callbacks.random_state import collect, restore
from clt_lightning.core.errors import UserError
from clt_lightning.runs.requeue import requeue, slurm_job
from clt_lightning.runs.signals import SignalFlag


def test_a_signal_sets_the_flag_and_nothing_else() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    flag = SignalFlag("SIGUSR2")
    flag.install()
    try:
        assert not flag.raised
        os.kill(os.getpid(), signal.SIGUSR2)
        assert flag.raised
    finally:
        flag.restore()
    assert signal.getsignal(signal.SIGUSR2) == before


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP", "USR1", "getsignal", "nothing"])
def test_what_is_no_signal_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"requeue\.signal='{name}'"):
        SignalFlag(name)


def test_jobs_have_slurms_names() -> None:
    assert slurm_job({}) is None
    assert slurm_job({"SLURM_JOB_ID": "12"}) == "12"
    assert slurm_job({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}) == "12_2"
    assert slurm_job({"SLURM_JOB_ID": "12; rm"}) is None


def test_scontrol_is_asked_and_its_refusal_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n[ "$2" = 12 ] || {{ echo not yours >&2; exit 1; }}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert requeue("12")
    assert (tmp_path / "asked").read_text() == "requeue 12\n"
    assert not requeue("13")
    assert "not yours" in caplog.text
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue("12")
    assert "no scontrol" in caplog.text


def test_random_states_come_back_through_a_file_that_holds_plain_values(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))]

    before = collect()
    try:
        draws()
        random.gauss(0, 1)
        torch.save(collect(), tmp_path / "state")
        expected = draws()
        restore(torch.load(tmp_path / "state", weights_only=True))
        assert draws() == expected
    finally:
        restore(before)

"""A signal that asks a run to stop, and the scheduler that starts it again."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

from clt_lightning.core.errors import UserError

log = logging.getLogger(__name__)

#: Exit code of a run that a signal stopped after it wrote its checkpoint: BSD's EX_TEMPFAIL, "try again"
EXIT_STOPPED = 75
#: Exit code after SIGTERM, as shells give it: 128 + 15
EXIT_TERMINATED = 143


class Stopped(Exception):  # noqa: N818  (no error: what was asked for)
    """Leaves training after a signal: the checkpoint is written, and the run can go on from it."""


class SignalFlag:
    """Remembers that a signal came. The handler does nothing else, so it can come at any moment.

    Args:
        name: such as `SIGUSR1`.

    Raises:
        UserError: the system has no such signal, or it cannot be handled.
    """

    def __init__(self, name: str) -> None:
        number = getattr(signal, name, None)
        if not isinstance(number, signal.Signals) or name in ("SIGKILL", "SIGSTOP"):
            raise UserError(f"requeue.signal={name!r} cannot be handled: take SIGUSR1, SIGUSR2 or SIGHUP")
        self.signal = number
        self.raised = False
        self._before: Any = None
        self._installed = False

    def install(self) -> None:
        """Handles the signal from now on (in the main thread of the process only: Python's rule)."""
        if self._installed or not self.is_main_thread():
            return
        self._before = signal.getsignal(self.signal)
        if multiprocessing.get_start_method(allow_none=True) != "fork":
            _shield_helpers(self.signal)
        signal.signal(self.signal, self._handle)
        self._installed = True

    @staticmethod
    def is_main_thread() -> bool:
        """Whether this thread may say how signals are handled."""
        return threading.current_thread() is threading.main_thread()

    def restore(self) -> None:
        """Puts back what handled the signal before."""
        if self._installed:
            signal.signal(self.signal, self._before if self._before is not None else signal.SIG_DFL)
            self._installed = False

    def _handle(self, number: int, frame: object) -> None:
        self.raised = True


def _shield_helpers(number: signal.Signals) -> None:
    """Starts Python's helper processes while the signal is ignored: they inherit that.

    A scheduler sends its signal to every process of the job; one of these would die of it and take the data workers
    along.
    """
    from multiprocessing import forkserver, resource_tracker

    before = signal.signal(number, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
        if multiprocessing.get_start_method() == "forkserver":
            forkserver.ensure_running()
    finally:
        signal.signal(number, before if before is not None else signal.SIG_DFL)


def slurm_job(environment: Mapping[str, str] | None = None) -> str | None:
    """The job to requeue: `<id>`, or `<array id>_<task>` for one of an array; None outside Slurm."""
    env = os.environ if environment is None else environment
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"[0-9]+(_[0-9]+)?", job) else None


def requeue(job: str) -> bool:
    """Asks Slurm to run the job again; it then ends the running one.

    Returns:
        Whether Slurm agreed. If not (no `scontrol` in a container, not requeueable), the reason is in the log, and the
        batch script has to do it: it sees exit code 75.
    """
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        log.warning("job %s is not requeued: no scontrol here; exit code %d tells the script", job, EXIT_STOPPED)
        return False
    done = subprocess.run([scontrol, "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        log.warning("scontrol requeue %s failed (%d): %s", job, done.returncode, (done.stderr or done.stdout).strip())
        return False
    log.warning("job %s is requeued", job)
    return True

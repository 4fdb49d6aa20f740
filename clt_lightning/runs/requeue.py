"""Slurm, which starts a run again."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from clt_lightning.runs.signals import EXIT_STOPPED

log = logging.getLogger(__name__)


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

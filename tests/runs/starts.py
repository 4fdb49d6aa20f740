"""Starts of one run that are killed, in processes that cost no import of torch each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")


def _target(words: list[str], log: Path) -> None:
    import torch

    # Data workers are to be children of this process, as in a run from the shell: they then notice its death and end. A
    # process that came from a fork server would start another one for them, which outlives a kill.
    multiprocessing.set_start_method("fork", force=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    from clt_lightning.cli.main import main

    main(words)
    sys.stdout.flush()


def start(words: list[str], log: Path) -> Any:
    """Runs the command line in a process; its output is appended to `log`."""
    process = _context.Process(target=_target, args=(words, log))
    process.start()
    return process


def finish(words: list[str], log: Path, seconds: float = 120) -> int:
    """Runs the command line to its end.

    Returns:
        The exit code.
    """
    process = start(words, log)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"not finished after {seconds} s:\n{log.read_text()[-3000:]}")
    return int(process.exitcode)


def kill(process: Any) -> None:
    """SIGKILL, and waits until it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()

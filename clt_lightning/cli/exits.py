"""How a command ends: exit codes after signals, and what is said then."""

from __future__ import annotations

import errno
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from clt_lightning.runs.folder import RunFolder
from clt_lightning.runs.signals import EXIT_INTERRUPTED, EXIT_TERMINATED, Stopped, interrupt


@contextmanager
def exit_codes(words: Sequence[str]) -> Iterator[None]:
    """Handles Ctrl-C in a command, and gives the exit codes that shells and schedulers know.

    Args:
        words: the command and its options.

    Raises:
        SystemExit: 75 after a signal that `requeue` waits for, 130 after Ctrl-C, 143 after SIGTERM.
    """
    interrupt.install()
    try:
        yield
        if interrupt.raised:  # it came when nothing was left to stop
            raise KeyboardInterrupt
    except Stopped as stopped:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"{stopped}{how_to_go_on(words, stopped)}", file=sys.stderr, flush=True)
        _wait_for(interrupt.children)
        raise SystemExit(stopped.exit_code) from None
    except SIGTERMException:
        # Lightning's would end with 0, and a scheduler would take the run for finished
        print("terminated (SIGTERM): --ckpt_path last goes on from the last checkpoint", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_TERMINATED) from None
    except SystemExit:
        if not interrupt.raised:
            raise
        print("interrupted", file=sys.stderr, flush=True)  # Lightning ends with 1
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        interrupt.restore()


def how_to_go_on(words: Sequence[str], stopped: Stopped) -> str:
    """The command that goes on with a run that was stopped; empty for one that has no checkpoint."""
    if stopped.checkpoint is None:
        return ""
    kept, is_value = [], False
    for word in words:
        if not is_value and not re.fullmatch(r"--(ckpt_path|version)(=.*)?", word):
            kept.append(word)
        is_value = word in ("--ckpt_path", "--version")
    version = RunFolder(stopped.checkpoint.parent.parent).version
    kept += ["--ckpt_path", "last", *([] if version is None else ["--version", str(version)])]
    return f". Go on with:\n  python -m clt_lightning {shlex.join(kept)}"


def _wait_for(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits until the other processes of a run have ended, too."""
    for child in children:
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()


def full_disk(error: BaseException) -> OSError | None:
    """What the disk refused, where a library (TensorBoard's logger) has made another error of it; else None."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None

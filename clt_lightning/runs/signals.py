"""Signals that stop a run: a flag each, which the run looks at between its steps."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.runs.folder import shown

#: Exit code of a run that a signal stopped after it wrote its checkpoint: BSD's EX_TEMPFAIL, "try again"
EXIT_STOPPED = 75
#: Exit codes after SIGINT (Ctrl-C) and SIGTERM, as shells give them: 128 + the signal's number
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Stopped(Exception):  # noqa: N818  (no error: what was asked for)
    """Leaves training after a signal; the run can go on from its checkpoint.

    Attributes:
        signal: the signal's name.
        step: optimizer steps done.
        checkpoint: where the state is; None where the run writes no checkpoints.
    """

    def __init__(self, signal: str, step: int, checkpoint: Path | None) -> None:
        state = "it writes no checkpoints, and its state is lost"
        if checkpoint is not None:
            state = f"the state is in {shown(checkpoint)}"
        super().__init__(f"stopped by {signal} after step {step}; {state}")
        self.signal, self.step, self.checkpoint = signal, step, checkpoint

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.signal == "SIGINT" else EXIT_STOPPED


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

    def install(self) -> bool:
        """Handles the signal from now on (in the main thread of the process only: Python's rule).

        Returns:
            Whether it was not handled before, and now is.
        """
        if self._installed or not self.is_main_thread():
            return False
        self._before = signal.getsignal(self.signal)
        # Python's helper processes ignore SIGINT by themselves
        if self.signal != signal.SIGINT and multiprocessing.get_start_method(allow_none=True) != "fork":
            _shield_helpers(self.signal)
        signal.signal(self.signal, self._handle)
        self._installed = True
        return True

    @staticmethod
    def is_main_thread() -> bool:
        """Whether this thread may say how signals are handled."""
        return threading.current_thread() is threading.main_thread()

    def restore(self) -> None:
        """Puts back what handled the signal before (in the main thread only, as `install`)."""
        if self._installed and self.is_main_thread():
            signal.signal(self.signal, self._before if self._before is not None else signal.SIG_DFL)
            self._installed = False

    def _handle(self, number: int, frame: object) -> None:
        self.raised = True


class Interrupt(SignalFlag):
    """Ctrl-C: the first one ends what is running in an orderly way, the second one everything at once.

    While `waits` is set, the first one is a flag alone, and whoever set it looks at the flag soon. Otherwise it raises
    KeyboardInterrupt as well. Python loses an exception that a handler raises in some places (finalizers, callbacks out
    of C), so the flag counts: it stays.

    Attributes:
        waits: whether a running step is to be finished first.
        children: processes that end with this one when it ends at once.
    """

    #: Seconds in which a second signal is the first one, forwarded by a program in between
    SAME = 0.5

    def __init__(self) -> None:
        super().__init__("SIGINT")
        self.waits = False
        self.children: list[subprocess.Popen[bytes]] = []
        self.speaks = True
        self._at, self._owner = 0.0, 0

    def install(self) -> bool:
        installed = super().install()
        if installed:
            self.raised, self.waits, self.children, self._owner = False, False, [], os.getpid()
        return installed

    def insist(self) -> None:
        """Handles the signal again, where a library ignores it while it shuts down."""
        if self._installed and self.is_main_thread():
            signal.signal(self.signal, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._owner:
            return  # a data worker that has only just been forked: it ends with its parent
        now = time.monotonic()
        if self.raised and now - self._at < self.SAME:
            return
        if self.raised:
            for child in self.children:
                child.kill()
            os._exit(EXIT_INTERRUPTED)
        self.raised, self._at = True, now
        if not self.waits:
            raise KeyboardInterrupt
        if self.speaks:
            # the system call: Python's streams may be in the middle of a line
            os.write(2, b"\ninterrupted: this step is finished and saved first; Ctrl-C again stops at once\n")


#: The process's one
interrupt = Interrupt()


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

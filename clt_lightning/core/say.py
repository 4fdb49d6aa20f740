"""A sentence to the user, from the first process alone."""

from __future__ import annotations

import sys
import warnings

from clt_lightning.core.terminal import first_process


def say(text: str) -> None:
    """A line on stderr: what is about to take long, what was chosen in the user's place."""
    if first_process():
        print(text, file=sys.stderr, flush=True)


def doubt(text: str, stacklevel: int = 2) -> None:
    """A warning: the work goes on, but what comes of it may not be what the user thinks. Each text once."""
    if first_process():
        warnings.warn(text, stacklevel=stacklevel + 1)

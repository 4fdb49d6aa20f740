"""Main memory of this process, from what the system keeps account of."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int | None:
    """Bytes in main memory now; None where the system does not say (only Linux does)."""
    return _from_status("VmRSS")


def peak_resident() -> int | None:
    """The most bytes in main memory so far; None where the system does not say (Linux and macOS do)."""
    # on Linux not from getrusage: it starts with the peak of the process that started this one
    peak = _from_status("VmHWM")
    return _from_rusage() if peak is None else peak


def _from_status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return next((int(kib) * 1024 for kib in values), None)


def _from_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available() -> int | None:
    """Bytes of main memory that can be had without swapping; None where the system does not say (only Linux does)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kib) * 1024 for kib in values), None)

"""Settings of the C libraries under torch; to be imported before torch. What the user has set is left alone."""

import ctypes
import os
import sys

# Large gradients are allocated anew in every step: huge pages halve the cost of touching them (Linux)
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Waiting OpenMP threads that spin slow everything down where data workers or other jobs share the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

#: Of glibc's malloc.h: the numbers of the settings
_TRIM, _MMAP = -1, -3
#: Bytes: free memory that a process keeps at most, and from which size on memory comes from the system each time
_KEPT, _OWN = 512 << 20, 128 << 20


def keep_freed_memory() -> bool:
    """Lets malloc keep what tensors of tens of megabytes give back, for those of the next step; whether it does.

    By itself glibc gives it back to the system, whose pages must be cleared and faulted in again: 2 to 8 % of a step.
    """
    if not sys.platform.startswith("linux") or any(
        name in os.environ for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_TRIM, _KEPT)) and bool(mallopt(_MMAP, _OWN))


keep_freed_memory()

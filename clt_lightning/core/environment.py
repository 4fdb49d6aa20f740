"""Settings of the C libraries under torch; to be imported before torch. What the user has set is left alone."""

import os

# Large gradients are allocated anew in every step: huge pages halve the cost of touching them (Linux)
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Waiting OpenMP threads that spin slow everything down where data workers or other jobs share the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

"""What stands before torch is imported: settings of a process, so each is looked at in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import clt_lightning.core.environment
def room():
    found = bytearray(20 << 20)
    found[:: 4096] = bytes(len(found) // 4096)
room()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    room()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, "torch" in sys.modules)
"""


def faults(**variables: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", FAULTS], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    count, torch_is_there = run.stdout.split()
    assert torch_is_there == "False"
    return int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_that_a_step_gives_back_is_there_for_the_next() -> None:
    pages = 5 * (20 << 20) // 4096
    assert faults() < pages / 50
    # what the user has set is left alone: here all large memory comes from the system each time
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") > pages / 2

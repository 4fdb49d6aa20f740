"""What the system says of this process's memory, against blocks of known size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clt_lightning.core import memory

MIB = 2**20
CODE = """
import json, sys
from clt_lightning.core.memory import peak_resident, resident
found = [(peak_resident(), resident())]
block = bytearray(200 * 2**20)  # zeros that nobody has written yet take no memory
block[::4096] = b"x" * len(block[::4096])
found.append((peak_resident(), resident()))
del block
found.append((peak_resident(), resident()))
print(json.dumps(found))
"""
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")


@linux
def test_a_block_of_200_mib_comes_and_goes() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    (peak, now), (peak_with, with_block), (peak_after, after) = json.loads(done.stdout)
    assert now <= peak + MIB < 150 * MIB  # its own, not that of the process which started it
    for grown in (peak_with - peak, with_block - now):
        assert 195 * MIB < grown < 215 * MIB
    assert peak_after == pytest.approx(peak_with, abs=2 * MIB)
    assert after < now + 10 * MIB


@linux
def test_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = memory.peak_resident()
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "nothing")
    assert memory.resident() is None
    found = memory.peak_resident()
    assert found is not None
    assert expected is not None
    assert 0.9 * expected < found < 64 * expected  # bytes, whatever the unit of the system
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_resident() is None

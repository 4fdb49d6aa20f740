"""The GPU's benchmark runs every part on a CPU at toy size, and says where there is no device."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "no CUDA device here" in capsys.readouterr().out


@pytest.mark.parametrize("part", [part for part in gpu.PARTS if part != "fit"])
def test_every_part_runs_dry(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry", "--parts", part, "--json", str(tmp_path / "found.json")]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["parts"]) == [part]
    assert found["parts"][part]["rows"]


def test_memory_is_what_plan_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted for real at toy size, and refused where a step takes much more than is on paper."""
    options = argparse.Namespace(dry=True, device="cpu")
    shares = [float(told.rpartition(", ")[2].split()[0]) for _, told in gpu.memory(options)]
    assert len(shares) == 2
    assert all(0.4 < share < gpu.OVER_PLAN for share in shares)
    monkeypatch.setattr(gpu, "OVER_PLAN", min(shares) / 2)
    assert gpu.main(["--dry", "--parts", "memory"]) == 1
    assert "FAILED: RuntimeError: F 64: peak" in capsys.readouterr().out


@pytest.mark.slow
def test_the_fit_runs_dry(tmp_path: Path) -> None:
    assert gpu.main(["--dry", "--parts", "fit"]) == 0


def test_a_part_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(options: object) -> list[tuple[str, str]]:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.PARTS, "kernels", broken)
    assert gpu.main(["--dry", "--parts", "kernels"]) == 1
    assert "FAILED: RuntimeError: no such kernel" in capsys.readouterr().out

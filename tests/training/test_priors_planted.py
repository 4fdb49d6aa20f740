"""The depth support of a planted world, and what it costs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_prior_finds_the_planted_depth_support(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "examples" / "planted_support.py"
    spec = importlib.util.spec_from_file_location("planted_support", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)  # where dataclasses look for their types
    spec.loader.exec_module(example)
    found = example.compare(seed=11, steps=2500, n_features=48, k=6, baselines=False)
    prior, plain = found["sparse decoding"], found["plain"]
    assert prior.support >= 0.95
    assert prior.fvu <= 1.15 * plain.fvu
    assert prior.fvu < found["plain, cut afterwards"].fvu

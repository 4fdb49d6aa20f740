"""A tiny CLIP with random weights, its CLTModule, and labelled noise to measure on."""

from __future__ import annotations

import pytest

from .world import register


@pytest.fixture(scope="session", autouse=True)
def _tiny_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("open_clip"))

"""Tiny CLIPs, made on the spot and read as a user's own checkpoint would be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clt_lightning.backbone.clip import FrozenCLIP

from .tiny import Maker, tiny_config, write_tiny


@pytest.fixture(scope="module")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    def make(precision: Any = "fp32", quick_gelu: bool = False, seed: int = 0, **vision: Any) -> FrozenCLIP:
        folder = tmp_path_factory.mktemp("tiny")
        path = write_tiny(folder, tiny_config(quick_gelu, **vision), seed)
        return FrozenCLIP("tiny", str(path), precision=precision)

    return make


@pytest.fixture
def clip(make_clip: Maker) -> FrozenCLIP:
    return make_clip()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))

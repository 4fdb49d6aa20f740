"""A tiny CLIP and data for everything that is analysed."""

from __future__ import annotations

import pytest

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import make_clip, make_clt, register


@pytest.fixture(scope="session", autouse=True)
def _tiny_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("open_clip_analysis"))


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return make_clip()


@pytest.fixture(scope="module")
def clt() -> CrossLayerTranscoder:
    return make_clt()

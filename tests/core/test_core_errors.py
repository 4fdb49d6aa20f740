"""Messages name a setting as the user wrote it."""

from __future__ import annotations

import pytest

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError, about, setting, within
from clt_lightning.training.module import CLTModule


def test_a_setting_is_called_as_in_the_call_or_the_config() -> None:
    assert setting("pretrained") == "pretrained"
    with within("model.backbone"):
        assert setting("pretrained") == "model.backbone.pretrained"
        with within("zero_shot"):
            assert setting("windows") == "zero_shot.windows"
        with pytest.raises(UserError, match=r"^model\.backbone\.pretrained: x is empty$"), about("pretrained"):
            raise UserError("x is empty")
    assert setting("pretrained") == "pretrained"


def test_frozen_clip_follows_the_call() -> None:
    with pytest.raises(UserError, match=r"^pretrained: 'none\.pt' is neither"):
        FrozenCLIP("ViT-B-32", "none.pt")
    with pytest.raises(UserError, match=r"^model\.backbone\.pretrained: 'none\.pt' is neither"):
        CLTModule({"name": "ViT-B-32", "pretrained": "none.pt"})
    with pytest.raises(UserError, match=r"^model\.backbone\.name: open_clip has no architecture 'ViT-B32'"):
        CLTModule({"name": "ViT-B32", "pretrained": None})

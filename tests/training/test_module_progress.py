"""The pass that sets the transcoder's scales says that it is under way."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.progress import Progress
from clt_lightning.training.module import CLTModule
from clt_lightning.training.settings import TokensConfig, TranscoderConfig


def test_the_normalisation_pass_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Progress, "shortest", 0.0)
    module = CLTModule(
        FrozenCLIP(pretrained="demo"),
        TranscoderConfig(n_features=32),
        tokens=TokensConfig(per_image=5, statistics=100),
    )
    images = [{"image": torch.randn(3, 48, 48), "key": str(i), "label": 0} for i in range(40)]
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(images, batch_size=4))  # type: ignore[arg-type]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("normalisation")]
    assert lines[0] == "normalisation: 100 training tokens set the transcoder's scales, once"
    assert any("60 of 100 tokens" in line for line in lines)
    assert any("100 tokens" in line for line in lines[-1:])

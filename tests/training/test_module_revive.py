"""Features that have stopped firing come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

import clt_lightning as cl
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.training.losses import AuxKConfig, CascadeConfig
from clt_lightning.training.settings import (
    LossConfig,
    ReviveConfig,
    ScheduleConfig,
    TokensConfig,
    TranscoderConfig,
)

FEATURES, SILENT = 24, slice(4, 9)


class Images(lightning.LightningDataModule):
    """One batch of four images of noise, an epoch each: any two runs see the same data."""

    def train_dataloader(self) -> Any:
        images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        rows = [{"image": image, "label": 0, "key": str(i)} for i, image in enumerate(images)]
        return torch.utils.data.DataLoader(rows, batch_size=4)  # type: ignore[arg-type]


def make(revive: ReviveConfig, activation: cl.Activation | None = None) -> cl.CLTModule:
    return cl.CLTModule(
        FrozenCLIP(pretrained="demo"),
        TranscoderConfig(n_features=FEATURES, activation=activation or cl.BatchTopK(3)),
        # the cascade begins at a share of the run, and these runs have different lengths
        LossConfig(auxk=AuxKConfig(coefficient=0.0), cascade=CascadeConfig(stream=0.0, embedding=0.0)),
        lambda params: torch.optim.Adam(params, lr=1e-2),
        ScheduleConfig(decay="none"),
        TokensConfig(statistics=200),
        revive=revive,
        seed=1,
    )


def fit(module: cl.CLTModule, steps: int, **more: Any) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Images(), **more)
    return trainer


def silence(module: cl.CLTModule) -> None:
    """Some features start far below every cut."""
    with torch.no_grad():
        module.transcoder.b_enc[:, SILENT] = -9.0


def test_the_bias_of_a_silent_feature_rises_by_so_many_learning_rates() -> None:
    module = make(ReviveConfig(speed=4.0, after_tokens=100))
    optimizer = torch.optim.SGD(module.transcoder.parameters(), lr=0.5)
    module.tokens_since_fired[1, 3], module.tokens_since_fired[2, 7] = 100, 99
    before = module.transcoder.b_enc.detach().clone()
    module.on_before_optimizer_step(optimizer)
    expected = before.clone()
    expected[1, 3] += 4.0 * 0.5
    assert torch.equal(module.transcoder.b_enc, expected)
    still = make(ReviveConfig(speed=0.0, after_tokens=100))
    still.tokens_since_fired[:] = 10**6
    still.on_before_optimizer_step(optimizer)
    assert torch.equal(still.transcoder.b_enc, before)


@pytest.mark.parametrize(
    "activation", [cl.BatchTopK(3), cl.TopK(3), cl.JumpReLU(0.5, 0.1)], ids=lambda a: type(a).__name__
)
def test_silent_features_fire_again(activation: cl.Activation) -> None:
    fired = {}
    for speed in (0.0, 60.0):
        module = make(ReviveConfig(speed, after_tokens=300), activation)
        silence(module)
        fit(module, 32)
        fired[speed] = (module.tokens_since_fired < 32 * 4 * module.clip.n_positions)[:, SILENT]
    assert not fired[0.0].any()
    assert fired[60.0].all()


def test_a_run_that_goes_on_revives_as_one_that_never_stopped(tmp_path: Path) -> None:
    def started() -> cl.CLTModule:
        module = make(ReviveConfig(60.0, after_tokens=300))
        silence(module)
        return module

    straight = started()
    fit(straight, 14)
    first = started()
    fit(first, 8).save_checkpoint(tmp_path / "half.ckpt")
    second = started()
    fit(second, 14, ckpt_path=str(tmp_path / "half.ckpt"))
    assert (first.tokens_since_fired >= 300).any()  # in the midst of it
    for key, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_mistakes_are_named() -> None:
    for arguments in ({"speed": -1.0}, {"after_tokens": 0}):
        with pytest.raises(UserError, match="revive: speed"):
            ReviveConfig(**arguments)

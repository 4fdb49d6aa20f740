"""Two real processes log the numbers of one, for every callback that measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest

from clt_lightning.callbacks import Reconstruction, RunRecord, Table, ZeroShot
from tests.parallel import processes

from .world import Made, module, register, trainer


def validated(folder: Path, **options: Any) -> dict[str, float]:
    """What all callbacks log of one validation."""
    model, data = module(), Made(n=25)
    model.transcoder.normalized.fill_(True)  # the means are zero here, and as good as others to compare
    callbacks = (
        Reconstruction(),
        ZeroShot(["0-", "1"], ["all", "patch"], include_mean_ablation=True),
        Table(),
        RunRecord(),
    )
    (found,) = trainer(folder, *callbacks, **options).validate(model, datamodule=data, verbose=False)
    return dict(found)


def validated_by_two(folder: Path, models: Path) -> dict[str, float]:
    open_clip.add_model_config(models)
    return validated(folder, devices=2, strategy="ddp")


def test_two_processes_log_the_numbers_of_one(tmp_path: Path) -> None:
    one = validated(tmp_path)
    assert len(one) == 3 * 4 * 4 + 2 + 2 * 4 + 2  # the last two: shares of features and skip
    register(tmp_path)
    for two in processes.run(validated_by_two, tmp_path / "ranks", 2, tmp_path, tmp_path):
        assert two == pytest.approx(one, rel=1e-6)
    assert len(list((tmp_path / "run").rglob("results.json"))) == 2  # one per run, whatever the number of processes

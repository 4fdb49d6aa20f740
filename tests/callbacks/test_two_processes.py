"""Two real processes log the numbers of one, for every callback that measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clt_lightning.callbacks import Reconstruction, RunRecord, Table, ZeroShot

from .world import Made, module, trainer


def test_two_processes_log_the_numbers_of_one(tmp_path: Path) -> None:
    model, data = module(), Made(n=25)
    model.transcoder.normalized.fill_(True)  # the means are zero here, and as good as others to compare

    def callbacks() -> tuple[Any, ...]:
        return (
            Reconstruction(),
            ZeroShot(["0-", "1"], ["all", "patch"], include_mean_ablation=True),
            Table(),
            RunRecord(),
        )

    (one,) = trainer(tmp_path, *callbacks()).validate(model, datamodule=data, verbose=False)
    assert len(one) == 3 * 4 * 4 + 2 + 2 * 4 + 2  # the last two: shares of features and skip
    both = trainer(tmp_path, *callbacks(), devices=2, strategy="ddp_spawn")
    (two,) = both.validate(model, datamodule=data, verbose=False)
    assert two == pytest.approx(one, rel=1e-6)
    assert len(list((tmp_path / "run").rglob("results.json"))) == 2  # one a run, whatever the number of processes

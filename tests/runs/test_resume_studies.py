"""What is beside the weights goes on as well: places in several sets, and what a prior on the weights has learnt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clt_lightning.cli.main import main
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO
from clt_lightning.runs.folder import LAST

from .world import differences, merged, write_config, write_data

STOPPED, LAST_STEP = 3, 6
STUDIES = {"first": 1, "second": 3}  # images of each in a batch of 4: the sets are at different places
PRIOR = {"coefficient": 0.5, "lambda0": 10, "lambda1": 0.5, "start": 0.0, "warmup_fraction": 0.5, "refit": 0.3}
#: What differs without being part of where a run is: what was measured, and how long it took
APART = {"callbacks", "validation", "loops"}


def _config(folder: Path) -> Path:
    path = write_config(folder)
    sets = {
        name: {
            "class_path": "WebImages",
            "init_args": {"root": str(write_data(folder / name)), "num_workers": 0, "shuffle": 10, "augment": "flip"},
        }
        for name in STUDIES
    }
    above = {
        "model": {
            "loss": {
                "extra": [
                    {"class_path": "clt_lightning.training.priors.SparseDecoding", "init_args": dict(PRIOR)},
                    {"class_path": "MultiStudy", "init_args": {"start": 0.2, "warmup_fraction": 0.5}},
                ]
            },
            "optimizer": {"class_path": "clt_lightning.training.optim.RowSparseAdam"},  # which the prior follows lazily
        },
        "trainer": {"max_steps": LAST_STEP, "val_check_interval": LAST_STEP, "limit_val_batches": 1},
        "checkpoints": {"last_every_n_steps": STOPPED},
    }
    config = merged(yaml.safe_load(path.read_text()), above)
    config["data"] = {"class_path": "Studies", "init_args": {"sets": sets, "weights": STUDIES, "batch_size": 4}}
    path.write_text(yaml.safe_dump(config))
    return path


def test_six_steps_of_studies_with_a_prior_are_three_and_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path)
    run, stopped = tmp_path / "runs" / "run" / "version_0", tmp_path / "stopped"
    save = SafeCheckpointIO.save_checkpoint

    def saving(self: SafeCheckpointIO, checkpoint: dict[str, Any], path: str | Path, **options: Any) -> None:
        save(self, checkpoint, path, **options)
        if Path(path).name == LAST and checkpoint["global_step"] == STOPPED:
            shutil.copytree(run, stopped)

    with monkeypatch.context() as patch:
        patch.setattr(SafeCheckpointIO, "save_checkpoint", saving)
        main(["fit", "--config", str(config)])
    whole = torch.load(run / "checkpoints" / LAST, weights_only=True)
    shutil.rmtree(run)
    stopped.rename(run)
    before = torch.load(run / "checkpoints" / LAST, weights_only=True)
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    again = torch.load(run / "checkpoints" / LAST, weights_only=True)

    assert (before["global_step"], again["global_step"], whole["global_step"]) == (STOPPED, LAST_STEP, LAST_STEP)
    assert [d for name in sorted(whole.keys() - APART) for d in differences(whole[name], again[name], name)] == []
    places = [c["loops"]["fit_loop"]["state_dict"] for c in (whole, again, before)]
    assert differences(places[0], places[1]) == []
    assert all(f"'{name}'" in str(places[0]) for name in STUDIES)
    for name in ("state_dict", "optimizer_states", "priors"):  # and all of it has moved since the stop
        assert differences(whole[name], before[name]) != []
    assert differences(places[0], places[2]) != []

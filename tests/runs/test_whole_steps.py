"""Every file is written between optimizer steps, so that a run with accumulated gradients is exact after any deaths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.cli.main import main
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO
from clt_lightning.runs.folder import LAST
from clt_lightning.runs.resume import find

from .world import differences, scalars, state, write_config


class Death(BaseException):
    pass


def dies_after(writes: int, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> bool:
    """Runs, and dies once `last.ckpt` was written so many times; whether it came to that."""
    save, link = SafeCheckpointIO.save_checkpoint, SafeCheckpointIO.link_checkpoint
    left = [writes]

    def saving(self: SafeCheckpointIO, checkpoint: dict[str, Any], path: str | Path, **options: Any) -> None:
        save(self, checkpoint, path, **options)
        written(path)

    def linking(self: SafeCheckpointIO, source: str | Path, path: str | Path) -> bool:
        done = link(self, source, path)
        if done:
            written(path)
        return done

    def written(path: str | Path) -> None:
        left[0] -= Path(path).name == LAST
        if not left[0]:
            raise Death

    with monkeypatch.context() as patch:
        patch.setattr(SafeCheckpointIO, "save_checkpoint", saving)
        patch.setattr(SafeCheckpointIO, "link_checkpoint", linking)
        try:
            main(words)
        except Death:
            return True
    return False


def whole(run: Path) -> dict[str, Any]:
    return state(run / "checkpoints" / LAST)


# val_check_interval 5 is in the middle of a step of 2 or 3 batches most of the time
@pytest.mark.parametrize(
    ("accumulate", "every", "interval"), [(2, 3, 5), pytest.param(3, 2, 7, marks=pytest.mark.slow)]
)
def test_a_death_after_each_starts_first_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, every: int, interval: int
) -> None:
    options: dict[str, Any] = {
        "data": {"init_args": {"num_workers": 0}},
        "trainer": {"accumulate_grad_batches": accumulate, "max_steps": 7, "val_check_interval": interval},
        "checkpoints": {"last_every_n_steps": every},
    }
    config = write_config(tmp_path, **options)
    words = ["fit", "--config", str(config), "--ckpt_path", "last"]
    main([*words, "--name", "calm"])
    calm, run = (tmp_path / "runs" / name / "version_0" for name in ("calm", "run"))
    deaths = 0
    while dies_after(1, monkeypatch, words):
        deaths += 1
        assert deaths < 30
        found = find("last", run / "checkpoints")
        assert found is not None
        content = torch.load(found.path, weights_only=True)
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        whole_epoch = batches["ready"] == 6  # of the 52 images, in batches of 8
        assert batches["ready"] % accumulate == 0 or whole_epoch
    assert deaths >= 5
    assert differences(whole(calm), whole(run)) == []
    expected, shown = scalars(calm), scalars(run)
    assert [step for step, _ in shown["val/fvu/all"]] == [step for step, _ in expected["val/fvu/all"]]
    assert set(shown["train/loss"]) <= set(expected["train/loss"])
    assert sorted(p.name for p in (calm / "checkpoints").iterdir()) == sorted(
        p.name for p in (run / "checkpoints").iterdir()
    )

"""Checkpoints, transcoder/, results.json: what a run leaves in its folder, and what a trial run does not."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import clt_lightning
from clt_lightning.callbacks import Checkpoints, ExportTranscoder, Reconstruction, RunRecord, Table, ZeroShot
from clt_lightning.callbacks.record import class_list_hash, git_state
from clt_lightning.core.errors import UserError
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import CLASSES, LAYERS, Made, module, trainer


def steps(path: Path) -> int:
    result: int = torch.load(path, weights_only=True)["global_step"]
    return result


def test_a_run_leaves_checkpoints_transcoder_and_record(tmp_path: Path) -> None:
    model, data = module(), Made()
    runner = trainer(
        tmp_path, Reconstruction(), ZeroShot(), Checkpoints(), ExportTranscoder(), RunRecord(), val_check_interval=2
    )
    runner.fit(model, datamodule=data)
    folder = tmp_path / "run" / "version_0"
    assert Path(str(runner.log_dir)) == folder
    at_end = {k.removeprefix("val/"): float(v) for k, v in runner.callback_metrics.items() if k.startswith("val/")}

    best = runner.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == sorted(["last.ckpt", Path(best).name])
    assert Path(best).name == f"best-step{steps(Path(best))}.ckpt"
    assert steps(folder / "checkpoints" / "last.ckpt") == 4

    exported = CrossLayerTranscoder.from_pretrained(folder / "transcoder")
    x = model.clip.capture(data.everything()[0]).x
    assert torch.equal(exported.encode(x).dense(), model.transcoder.encode(x).dense())
    metadata = json.loads((folder / "transcoder" / "config.json").read_text())["metadata"]
    assert metadata == {"clip": model.clip.describe(), "step": 4}

    content = json.loads((folder / "results.json").read_text())
    assert content["schema"] == 1
    assert content["metrics"]["val"] == {"step": 4, "epoch": content["metrics"]["val"]["epoch"], "values": at_end}
    run = content["run"]
    assert run["clip"] == model.clip.describe()
    assert run["versions"]["torch"] == torch.__version__
    assert run["data"]["class_list_sha256"] == class_list_hash(CLASSES)
    assert run["data"]["templates"] == data.templates
    assert run["data"]["description"] == {"set": "made", "images": data.n}
    assert run["transcoder"]["n_layers"] == LAYERS

    runner.test(model, datamodule=data, verbose=False)
    content = json.loads((folder / "results.json").read_text())
    assert content["metrics"]["val"]["values"] == at_end
    assert content["metrics"]["test"]["values"] == at_end  # val and test are the same images here


def test_an_evaluated_checkpoint_keeps_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(last_every_n_steps=1)
    trainer(tmp_path, Reconstruction(), checkpoints, max_steps=6).fit(module(), datamodule=Made())
    last = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    for stage in ("validate", "test"):
        runner = trainer(tmp_path, Reconstruction(), Table(), RunRecord())
        getattr(runner, stage)(module(), datamodule=Made(), ckpt_path=last, verbose=False)
        assert ", step 6\n" in capsys.readouterr().out
    for version, stage in ((1, "val"), (2, "test")):
        content = json.loads((tmp_path / "run" / f"version_{version}" / "results.json").read_text())
        found = content["metrics"][stage]
        assert (found["step"], found["epoch"]) == (6, torch.load(last, weights_only=True)["epoch"])


def test_last_is_the_newest_and_best_the_best(tmp_path: Path) -> None:
    """The largest FVU is called the best here: it falls from step to step, so best stays behind, and last does not."""
    checkpoints = Checkpoints(mode="max", last_every_n_steps=1)
    runner = trainer(tmp_path, Reconstruction(), checkpoints, val_check_interval=2, max_steps=7)
    runner.fit(module(), datamodule=Made())
    folder = Path(str(checkpoints.dirpath))
    assert folder == tmp_path / "run" / "version_0" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best-step2.ckpt", "last.ckpt"]
    assert steps(folder / "last.ckpt") == 7
    assert steps(folder / "best-step2.ckpt") == 2


def test_last_between_validations(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watch(Checkpoints):
        def _save_last_checkpoint(self, trainer: Any, monitor_candidates: dict[str, torch.Tensor]) -> None:
            super()._save_last_checkpoint(trainer, monitor_candidates)
            seen.append(steps(Path(self.last_model_path)))

    runner = trainer(tmp_path, Watch(last_every_n_steps=3), limit_val_batches=0, max_steps=7)
    runner.fit(module(), datamodule=Made())
    assert seen == [3, 6, 7]


def test_a_resumed_run_overwrites_its_last_checkpoint(tmp_path: Path) -> None:
    for max_steps in (2, 4):
        checkpoints = Checkpoints(dirpath=str(tmp_path / "checkpoints"))
        runner = trainer(tmp_path, Reconstruction(), checkpoints, max_steps=max_steps, val_check_interval=2)
        last = tmp_path / "checkpoints" / "last.ckpt"
        runner.fit(module(), datamodule=Made(), ckpt_path=last if last.exists() else None)
    assert steps(last) == 4
    assert not (tmp_path / "checkpoints" / "last-v1.ckpt").exists()


@pytest.mark.parametrize("every", [None, 2])
def test_the_final_weights_compete_for_the_best(tmp_path: Path, every: int | None) -> None:
    """No validation was due before the end: the one of the final weights makes the best checkpoint."""
    model, checkpoints = module(), Checkpoints(last_every_n_steps=every)
    runner = trainer(tmp_path, Reconstruction(), checkpoints, RunRecord(), max_steps=6, check_val_every_n_epoch=9)
    runner.fit(model, datamodule=Made())
    folder = tmp_path / "run" / "version_0"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best-step6.ckpt", "last.ckpt"]
    assert model.validated_at_step == 6
    assert json.loads((folder / "results.json").read_text())["metrics"]["val"]["step"] == 6
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (s for key, s in last["callbacks"].items() if key.startswith("Checkpoints"))
    assert Path(state["best_model_path"]).name == "best-step6.ckpt"
    assert (
        last["loops"]["fit_loop"]["epoch_progress"]["total"]
        == torch.load(folder / "checkpoints" / "best-step6.ckpt", weights_only=True)["loops"]["fit_loop"][
            "epoch_progress"
        ]["total"]
    )


def test_a_monitor_that_nobody_logs_is_named(tmp_path: Path) -> None:
    """Before the first step where that can be known; else without the loss of a step."""
    runner = trainer(tmp_path, Reconstruction(["cls"]), Checkpoints())
    with pytest.raises(UserError, match=r"monitor='val/fvu/all': reconstruction\.token_sets has no 'all' .*cls"):
        runner.fit(module(), datamodule=Made())
    assert runner.global_step == 0
    trainer(tmp_path, Reconstruction(["cls"]), Checkpoints(keep=0), max_steps=1).fit(module(), datamodule=Made())
    runner = trainer(tmp_path / "late", Reconstruction(), Checkpoints("val/loss"))
    with pytest.raises(UserError, match=r"checkpoints\.monitor='val/loss' is not logged .*val/fvu/all.*last\.ckpt"):
        runner.fit(module(), datamodule=Made())
    assert steps(tmp_path / "late" / "run" / "version_0" / "checkpoints" / "last.ckpt") == 4
    with pytest.raises(UserError, match="last_every_n_steps"):
        Checkpoints(last_every_n_steps=0)


@pytest.mark.parametrize("how", ["fast_dev_run", "no logger"])
def test_what_is_not_written_is_said(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"fast_dev_run": 2} if how == "fast_dev_run" else {"logger": False}
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        runner = trainer(tmp_path, Reconstruction(), ZeroShot(), ExportTranscoder(), RunRecord(), **options)
        runner.fit(module(), datamodule=Made())
    assert "transcoder/ is not written" in caplog.text
    assert caplog.text.count("results.json is not written") == 1
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_record_keeps_what_others_wrote_and_survives_odd_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "version_0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"analysis": {"a": 1}, "metrics": {"test": {"step": 1}}}))
    from lightning.pytorch.loggers import TensorBoardLogger

    model = module()
    with torch.no_grad():
        model.transcoder.b_dec[1] = float("nan")
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    trainer(tmp_path, Reconstruction(), RunRecord(), logger=logger).validate(model, datamodule=Made(), verbose=False)
    content = json.loads((folder / "results.json").read_text())
    assert content["analysis"] == {"a": 1}
    assert content["metrics"]["test"] == {"step": 1}
    assert content["metrics"]["val"]["values"]["fvu/all/layer_01"] is None
    assert isinstance(content["metrics"]["val"]["values"]["fvu/all/layer_00"], float)

    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json is not JSON"):
        trainer(tmp_path, RunRecord(), logger=logger).validate(module(), datamodule=Made(), verbose=False)


def test_the_commit_is_that_of_our_own_checkout_only(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / ".gitignore").write_text("venv\n")
    (tmp_path / "ours.py").write_text("1\n")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "installed.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "one")
    assert git_state(tmp_path / "ours.py") == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "ours.py").write_text("2\n")
    assert git_state(tmp_path / "ours.py") == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    assert git_state(tmp_path / "venv" / "installed.py") is None
    assert Path(clt_lightning.__file__).name == "__init__.py"


def test_a_best_and_the_last_checkpoint_of_one_state_are_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    save = SafeCheckpointIO.save_checkpoint

    def saving(self: SafeCheckpointIO, checkpoint: dict[str, Any], path: str | Path, **more: Any) -> None:
        written.append(Path(path).name)
        save(self, checkpoint, path, **more)

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", saving)
    runner = trainer(
        tmp_path, Reconstruction(), Checkpoints(mode="max"), val_check_interval=2, plugins=[SafeCheckpointIO()]
    )
    model = module()
    runner.fit(model, datamodule=Made())
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    best = Path(runner.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    # before each of two validations, and after it; a best one's state is last.ckpt's
    names = {path.name: steps(path) for path in folder.iterdir()}
    assert names["last.ckpt"] == 4
    assert names["previous.ckpt"] == 4, "the state before the last validation"
    assert names[best.name] == int(best.stem.removeprefix("best-step"))
    improved = best.name == "best-step4.ckpt"
    assert written == ["last.ckpt", "best-step2.ckpt", "last.ckpt", best.name if improved else "last.ckpt"]
    assert best.samefile(folder / "last.ckpt") == improved
    for path in (best, folder / "last.ckpt"):
        state = torch.load(path, weights_only=True)["callbacks"]
        (own,) = [value for key, value in state.items() if key.startswith("Checkpoints")]
        assert own["last_model_path"] == str(folder / "last.ckpt")


def test_links_are_made_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = SafeCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint({"global_step": step}, tmp_path / ("last.ckpt" if step == 1 else "best.ckpt"))
    assert io.link_checkpoint(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")
    assert [steps(tmp_path / name) for name in ("last.ckpt", "previous.ckpt")] == [2, 1]
    assert io.link_checkpoint(tmp_path / "best.ckpt", tmp_path / "last.ckpt"), "once more: nothing changes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    io.save_checkpoint({"global_step": 3}, tmp_path / "best.ckpt")
    assert steps(tmp_path / "last.ckpt") == 2, "a new file under one name leaves the other"

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    assert not io.link_checkpoint(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    assert not io.link_checkpoint("s3://bucket/best.ckpt", "s3://bucket/last.ckpt")
    assert steps(tmp_path / "last.ckpt") == 2
    assert not list(tmp_path.glob(".*"))

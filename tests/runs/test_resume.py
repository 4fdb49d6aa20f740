"""A run that stops anywhere and is started again ends with the weights of one that nobody disturbed, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO
from clt_lightning.runs.claim import require_writable
from clt_lightning.runs.folder import LAST, PREVIOUS, newest_to_go_on
from clt_lightning.runs.resume import find

from .kill_many import Plan, stress
from .starts import finish, kill, start
from .world import STEPS, differences, scalars, state, write_config

KINDS: dict[str, dict[str, Any]] = {
    "steps": {},
    "epochs": {
        "model": {"schedule": {"decay": "none"}},
        "trainer": {"max_steps": -1, "max_epochs": 3, "val_check_interval": 1.0, "check_val_every_n_epoch": 1},
    },
    "accumulated": {"trainer": {"accumulate_grad_batches": 2, "max_steps": 8, "val_check_interval": 4}},
}


def moments(folder: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs to the end, and keeps the run's folder as it is after each `last.ckpt`: what a kill then leaves."""
    kept: list[Path] = []
    save = SafeCheckpointIO.save_checkpoint

    def saving(self: SafeCheckpointIO, checkpoint: dict[str, Any], path: str | Path, **options: Any) -> None:
        save(self, checkpoint, path, **options)
        if Path(path).name == LAST:
            kept.append(folder / f"moment_{len(kept):02d}")
            shutil.copytree(Path(path).parent.parent, kept[-1])

    with monkeypatch.context() as patch:
        patch.setattr(SafeCheckpointIO, "save_checkpoint", saving)
        main(["fit", "--config", str(config)])
    return kept


def check_moments(
    folder: Path,
    kind: str,
    chosen: slice | None,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    more: dict[str, Any] | None = None,
) -> None:
    options = {
        **KINDS[kind],
        **(more or {}),
        "data": {"init_args": {"num_workers": 0}},
        "checkpoints": {"last_every_n_steps": 1},
    }
    config = write_config(folder, **options)
    kept = moments(folder, config, monkeypatch)
    run = folder / "runs" / "run" / "version_0"
    expected, shown = state(run / "checkpoints" / LAST), scalars(run)
    files = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert files[-2:] == [LAST, PREVIOUS]
    for moment in kept[chosen] if chosen else kept:
        at = find("last", moment / "checkpoints")
        assert at is not None
        shutil.rmtree(run)
        moment.rename(run)
        main(["fit", "--config", str(config), "--ckpt_path", "last"])
        assert [p.name for p in run.parent.iterdir()] == ["version_0"], at
        assert differences(expected, state(run / "checkpoints" / LAST)) == [], at
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == files, at
        again = scalars(run)
        for name in names:
            steps = [step for step, _ in again[name]]
            assert len(steps) == len(set(steps)), (at, name, steps)
            assert set(again[name]) <= set(shown[name]), (at, name)
        # one point each may be lost with the process: that of the checkpoint's own step
        assert len(shown["train/loss"]) - len(again["train/loss"]) <= 1 + at.validation_due, at
        assert len(shown["val/fvu/all"]) == len(again["val/fvu/all"]), at


TAGS = ("train/loss", "train/lr", "val/fvu/all", "val/zero_shot/replaced/0-2/all")


def test_from_some_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # within an epoch, before and after a validation, at the end
    check_moments(tmp_path, "steps", slice(0, None, 5), monkeypatch, TAGS)


def test_from_a_moment_with_sparse_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units beside the transcoder, some of them silent, in and out of the cascade."""
    units = {"n_features": 16, "activation": {"class_path": "BatchTopK", "init_args": {"k": 3}}, "dead_after": 20}
    model = {"attention": units, "tokens": {"per_image": None, "buffer": 0, "statistics": 64}}
    more = {"model": model | {"loss": {"cascade": {"start": 0.0, "warmup": 0.0}}}}
    tags = (
        *TAGS,
        "train/loss/attention",
        "train/attention/dead",
        "val/attention/fvu/all",
        "val/zero_shot/with_attention",
    )
    check_moments(tmp_path, "steps", slice(6, 7), monkeypatch, tags, more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_from_every_moment(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_moments(tmp_path, kind, None, monkeypatch, TAGS, {"figures": {"every": 1}})


@pytest.mark.slow
def test_two_kills(tmp_path: Path) -> None:
    """Real processes with data workers, killed in the middle of whatever they are doing."""
    assert stress(tmp_path, Plan(kills=2, steps=25, seed=1)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        Plan(seed=2),
        Plan(seed=3, steps=80, accumulate=2, every=3, interval=5),
        Plan(seed=4, steps=60, accumulate=3, every=2, interval=7),
        Plan(steps=60, accumulate=2, every=3, interval=5, moment="first"),
        Plan(steps=60, accumulate=3, every=2, interval=7, moment="first"),
    ],
    ids=lambda plan: f"{plan.accumulate}-{plan.moment}",
)
def test_many_kills(tmp_path: Path, plan: Plan) -> None:
    assert stress(tmp_path, plan) == []


@pytest.mark.slow
def test_a_signal_stops_after_a_step_and_the_run_goes_on(tmp_path: Path) -> None:
    config, log = (
        write_config(tmp_path, trainer={"max_steps": 60}, checkpoints={"last_every_n_steps": None}),
        tmp_path / "log",
    )
    words = ["fit", "--config", str(config), "--ckpt_path", "last"]
    assert finish([*words, "--name", "calm"], log) == 0
    process = start(words, log)
    checkpoints = tmp_path / "runs" / "run" / "version_0" / "checkpoints"
    wait_for(checkpoints / LAST, process)  # the first validation was
    os.kill(process.pid, signal.SIGUSR1)
    process.join(60)
    assert process.exitcode == 75, log.read_text()[-2000:]
    assert "stopped by SIGUSR1 after step" in log.read_text()
    stopped = find("last", checkpoints)
    assert stopped is not None
    assert 5 <= stopped.step < 60
    assert finish(words, log) == 0, log.read_text()[-2000:]
    calm = tmp_path / "runs" / "calm" / "version_0" / "checkpoints" / LAST
    assert differences(state(calm), state(checkpoints / LAST)) == []


def wait_for(path: Path, process: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.exitcode is None
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_damaged_last_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config(tmp_path, data={"init_args": {"num_workers": 0}})
    words = ["fit", "--config", str(config), "--ckpt_path", "last"]
    main(words)
    assert "the run starts from step 0" in caplog.text
    folder = tmp_path / "runs" / "run" / "version_0" / "checkpoints"
    expected = state(folder / LAST)
    whole = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged: .*is used: .*previous\.ckpt"):
        main(words)
    assert differences(expected, state(folder / LAST)) == []


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write_config(tmp_path, data={"init_args": {"num_workers": 0}})
    words = ["fit", "--config", str(config), "--ckpt_path", "last"]
    main(words)
    run = tmp_path / "runs" / "run" / "version_0"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    main(words)
    assert f"is finished (step {STEPS})" in caplog.text
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    # without --ckpt_path it is another run
    main([*words[:3], "--trainer.max_steps", "5"])
    assert sorted(p.name for p in run.parent.iterdir()) == ["version_0", "version_1"]


def test_nothing_of_the_end_is_missing_after_a_kill_between_the_last_step_and_the_end(tmp_path: Path) -> None:
    config = write_config(tmp_path, data={"init_args": {"num_workers": 0}})
    main(["fit", "--config", str(config)])
    run = tmp_path / "runs" / "run" / "version_0"
    weights, results = (run / "transcoder" / "model.safetensors").read_bytes(), (run / "results.json").read_text()
    shutil.rmtree(run / "transcoder")
    (run / "results.json").unlink()
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    assert (run / "transcoder" / "model.safetensors").read_bytes() == weights
    assert '"step": 14' in (run / "results.json").read_text()
    assert '"step": 14' in results
    assert [step for step, _ in scalars(run)["val/fvu/all"]] == [4, 9, 14]


def test_poisoned_weights_never_take_the_place_of_good_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, data={"init_args": {"num_workers": 0}})
    last = tmp_path / "runs" / "run" / "version_0" / "checkpoints" / LAST

    def fails(step: int, message: str) -> None:
        with pytest.raises(SystemExit) as error:
            main(["fit", "--config", str(config), "--ckpt_path", "last"])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
        assert torch.load(last, weights_only=True)["global_step"] == step

    from clt_lightning.training.module import CLTModule

    sites, before_step = CLTModule._sites, CLTModule.on_before_optimizer_step

    def poisoned(self: CLTModule, acts: Any) -> Any:
        if self.global_step == 7:
            acts.x[1, 3] = float("nan")
        return sites(self, acts)

    monkeypatch.setattr(CLTModule, "_sites", poisoned)
    fails(6, "step 7: the CLIP's MLP inputs (x) of layer 1 hold NaN or infinity")
    monkeypatch.setattr(CLTModule, "_sites", sites)

    def bad_gradient(self: CLTModule, optimizer: Any) -> None:
        before_step(self, optimizer)
        if self.global_step == 9:
            self.transcoder.W_enc[2].grad.fill_(float("inf"))

    monkeypatch.setattr(CLTModule, "on_before_optimizer_step", bad_gradient)
    fails(8, "W_enc.2")


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as error:
        main(["fit", "--config", str(config), "--runs_dir", str(tmp_path / "file" / "runs")])
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert "error: the run cannot be written to" in err
    assert "--runs_dir" in err
    assert "Traceback" not in err
    if os.geteuid():  # nothing is forbidden to root
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="Permission denied"):
            require_writable(tmp_path / "closed" / "runs")


def test_another_model_is_refused_by_the_key_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, data={"init_args": {"num_workers": 0}}, trainer={"max_steps": 2})
    main(["fit", "--config", str(config)])
    run = tmp_path / "runs" / "run" / "version_0"
    written = (run / "config.yaml").read_text()
    clip, other = tmp_path / "open_clip_model.safetensors", tmp_path / "other.safetensors"
    shutil.copy(clip, other)
    for option, message in (
        ("transcoder.n_features=32", "model.transcoder.n_features=64, the config says 32"),
        ("transcoder.topology=per_layer", "model.transcoder.topology='cross_layer', the config says 'per_layer'"),
        ("transcoder.activation.class_path=ReLU", "activation.class_path='BatchTopK', the config says 'ReLU'"),
        (f"backbone.pretrained={other}", f"pretrained='{clip.name}', the config says 'other.safetensors'"),
    ):
        with pytest.raises(SystemExit) as error:
            main(["fit", "--config", str(config), "--ckpt_path", "last", f"--model.{option}", "--trainer.max_steps=4"])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == written
    # another folder of the same CLIP, and another k, are no other model
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (clip, tmp_path / "open_clip_config.json"):
        path.rename(elsewhere / path.name)
    options = [f"--model.backbone.pretrained={elsewhere / clip.name}", "--model.transcoder.activation.init_args.k=5"]
    main(["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps=4", *options])
    at = find("last", run / "checkpoints")
    assert at is not None
    assert at.step == 4


def test_last_means_the_newest_version_with_a_checkpoint(tmp_path: Path) -> None:
    assert newest_to_go_on(tmp_path) is None
    for version, name in ((2, LAST), (10, PREVIOUS), (11, "best-step1.ckpt")):
        folder = tmp_path / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    (tmp_path / "version_x" / "checkpoints").mkdir(parents=True)
    newest = newest_to_go_on(tmp_path)
    assert newest is not None
    assert newest.version == 10


def test_a_process_killed_while_it_writes_leaves_one_temporary_that_the_next_start_removes(tmp_path: Path) -> None:
    config, log = (
        write_config(tmp_path, checkpoints={"last_every_n_steps": 1}, trainer={"max_steps": 400}),
        tmp_path / "log",
    )
    words = ["fit", "--config", str(config), "--ckpt_path", "last"]
    folder = tmp_path / "runs" / "run" / "version_0" / "checkpoints"
    process = start(words, log)
    wait_for(folder / LAST, process)
    wait_for(folder / f".{LAST}.tmp", process)  # it lives for a moment in every step
    kill(process)
    (folder / f".{LAST}.tmp").touch()
    assert find("last", folder) is not None
    at = find("last", folder)
    assert at is not None
    assert finish([*words, "--trainer.max_steps", str(max(8, at.step + 1))], log) == 0
    assert "removed what a killed run left half-written: .last.ckpt.tmp" in log.read_text()
    assert not list(folder.glob(".*"))

"""The command line's side of a run's folder: nothing of a start that fails, nothing over another run, `--run NAME`."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.cli.main import main
from clt_lightning.data.sets.base import WebImages
from clt_lightning.runs.folder import LAST, RunFolder, find_run
from clt_lightning.runs.lock import Lock
from clt_lightning.training.module import CLTModule

from .starts import start
from .world import run as run_command
from .world import scalars, write_config

SHORT = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, data={"init_args": {"num_workers": 0}})


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("broken on purpose")


def test_starts_that_fail_leave_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", str(config), *SHORT]
    for option, message in (
        ("--data.init_args.root=/nowhere", "/nowhere"),
        ("--trainer.precision=bf17", "precision"),
        ("--evaluate.faithfulness.layers=[9]", "9"),
        ("--checkpoints.monitor=val/fvu/none", "none"),
        ("--trainer.max_steps=no", "max_steps"),
    ):
        assert message in refused([*words, option], capsys)
        assert not (config.parent / "runs").exists(), option
    for owner, name in ((WebImages, "setup"), (WebImages, "train_dataloader"), (CLTModule, "training_step")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(RuntimeError, match="on purpose"):
                main(words)
        assert not (config.parent / "runs").exists(), name
    main(words)
    assert [p.name for p in (config.parent / "runs" / "run").iterdir()] == ["version_0"]
    # a start that fails changes nothing in a run that is there
    run = config.parent / "runs" / "run" / "version_0"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    monkeypatch.setattr(CLTModule, "training_step", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        main([*words, "--ckpt_path", "last", "--trainer.max_steps", "4", "--model.optimizer.init_args.lr", "0.02"])
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_two_processes_that_fail_leave_nothing_either(config: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    for option in ("--evaluate.faithfulness.layers=[9]", "--trainer.val_check_interval=-1"):
        assert run_command(config, *two, option, timeout=280).returncode in (1, 2)
        assert not (config.parent / "runs").exists()
    done = run_command(config, *two, *SHORT, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (done.stdout + done.stderr).count("run: ") == 1
    assert [p.name for p in (config.parent / "runs" / "run").iterdir()] == ["version_0"]
    assert not list((config.parent / "runs").rglob(".lock"))


def test_the_folder_is_told_and_what_comes_next(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(config.parent)
    main(["fit", "--config", str(config), *SHORT])
    assert caplog.messages.count("run: runs/run/version_0") == 1
    assert caplog.messages[-1] == "next: python -m clt_lightning test --run runs/run/version_0"
    caplog.clear()
    main(["test", "--run", "runs/run", "--evaluate.population.images=0", "--evaluate.features.enabled=false"])
    assert caplog.messages[-1] == "next: python -m clt_lightning report --run runs/run/version_0"


def test_a_folder_that_another_process_writes_to_is_refused_by_its_name(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", str(config), *SHORT]
    main(words)
    run = config.parent / "runs" / "run" / "version_0"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    lock = Lock(run)
    lock.acquire()
    (run / "checkpoints" / f".{LAST}.tmp").touch()  # the other process is writing it
    me = f"version_0 is being written by process {os.getpid()} on {socket.gethostname()} ("
    assert me in refused([*words, "--ckpt_path", "last", "--trainer.max_steps", "4"], capsys)
    assert me in refused(["test", "--run", str(run)], capsys)
    main(words)  # another run is free to begin
    assert (run / "checkpoints" / f".{LAST}.tmp").exists()
    (run / "checkpoints" / f".{LAST}.tmp").unlink()
    lock.release()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    main([*words, "--ckpt_path", str(run / "checkpoints" / LAST), "--version", "0", "--trainer.max_steps", "4"])


def test_a_run_is_not_written_over(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", str(config), *SHORT, "--version", "3"]
    main(words)
    run = config.parent / "runs" / "run" / "version_3"
    last = (run / "checkpoints" / LAST).read_bytes()
    assert "holds a run already" in refused(words, capsys)
    shutil.copytree(run, run.with_name("version_5"))
    other = str(run.with_name("version_5") / "checkpoints" / LAST)
    assert "--ckpt_path last goes on with that run" in refused([*words, "--ckpt_path", other], capsys)
    assert (run / "checkpoints" / LAST).read_bytes() == last


def test_a_run_that_died_before_its_first_checkpoint_begins_again_in_its_folder(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", "--config", str(config), "--ckpt_path", "last", *SHORT, "--checkpoints.last_every_n_steps", "100"]

    class Death(BaseException):
        pass

    def dies(self: CLTModule, *args: Any) -> None:
        if self.global_step:
            raise Death

    with monkeypatch.context() as patch:
        patch.setattr(CLTModule, "on_before_optimizer_step", dies)
        with pytest.raises(Death):
            main(words)
    run = config.parent / "runs" / "run" / "version_0"
    assert RunFolder(run).has_run
    assert not RunFolder(run).has_checkpoint
    main(words)
    assert [p.name for p in run.parent.iterdir()] == ["version_0"]
    assert [step for step, _ in scalars(run)["train/loss"]] == [0, 1]


def make_run(folder: Path, finished: bool, checkpoint: bool = True) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "results.json").write_text(json.dumps({"run": {"finished": "2026-01-01" if finished else None}}))
    if checkpoint:
        (folder / "checkpoints" / LAST).touch()


def test_a_name_means_the_newest_finished_version(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "name"
    for version, finished in ((0, True), (2, True), (10, True), (11, False)):
        make_run(root / f"version_{version}", finished)
    (root / "version_12").mkdir()
    assert find_run(root).version == 10
    assert find_run(str(root) + "/").version == 10
    assert find_run(root / "version_2").version == 2
    assert find_run(root / "version_11").version == 11
    copy = tmp_path / "copy"
    shutil.copytree(root / "version_2", copy)
    assert find_run(copy).path == copy


def test_a_name_that_means_nothing_is_told_what_there_is(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "name"
    make_run(root / "version_0", False)
    make_run(root / "version_1", False, checkpoint=False)
    lock = Lock(root / "version_0")
    lock.acquire()
    told = rf"no version is finished \(version_0 is being written by process {os.getpid()} .*; version_1 has no checkp"
    with pytest.raises(Exception, match=told):
        find_run(root)
    lock.release()
    with pytest.raises(Exception, match=r"there is no such folder; the runs in .*runs are name"):
        find_run(tmp_path / "runs" / "nome")
    with pytest.raises(Exception, match="there is no such folder; there is version_0, version_1"):
        find_run(root / "version_7")
    with pytest.raises(Exception, match=r"is not a run's folder: .*; the runs in .*runs are name"):
        find_run(tmp_path / "runs")


@pytest.mark.slow
def test_fits_started_in_the_same_instant_get_a_folder_each(config: Path, tmp_path: Path) -> None:
    pairs = 10
    for _ in range(pairs):
        processes = [
            start(["fit", "--config", str(config), *SHORT, f"--model.seed={seed}"], tmp_path / "log") for seed in (1, 2)
        ]
        for process in processes:
            process.join(280)
            assert process.exitcode == 0, (tmp_path / "log").read_text()[-3000:]
    runs = sorted((config.parent / "runs" / "run").iterdir())
    assert len(runs) == 2 * pairs
    seeds = []
    for run in runs:
        content = torch.load(run / "checkpoints" / LAST, weights_only=True)["hyper_parameters"]["seed"]
        assert RunFolder(run).finished
        assert f"seed: {content}\n" in (run / "config.yaml").read_text()
        assert [p.name for p in run.glob("events*")] != []
        seeds.append(content)
    assert sorted(seeds) == [1] * pairs + [2] * pairs

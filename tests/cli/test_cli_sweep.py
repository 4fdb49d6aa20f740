"""`fit --sweep`: every member is, to the bit, the run that it would be alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from clt_lightning.cli.main import main
from clt_lightning.cli.sweep.member import Together
from clt_lightning.cli.sweep.members import read_members
from clt_lightning.cli.sweep.outcome import Outcome, best
from clt_lightning.core.errors import UserError
from tests.cli.small import CONFIG, write

SWEEP: dict[str, Any] = {
    "grid": {"model.transcoder.activation.init_args.k": [2, 4]},
    "runs": {
        "topk": {"model": {"transcoder": {"activation": {"class_path": "TopK", "init_args": {"k": 4}}}}},
        "other": {"model.transcoder.n_features": 48, "model.seed": 5, "model.loss.cascade.start": 0.9},
    },
}
#: noise from dropout-like draws of the global generator would show; three epochs, two validations
TRAINER = CONFIG["trainer"] | {"max_steps": 6, "check_val_every_n_epoch": None, "val_check_interval": 3}
ALONE = {
    "k=2": ["--model.transcoder.activation.init_args.k=2"],
    "other": ["--model.transcoder.n_features=48", "--model.seed=5", "--model.loss.cascade.start=0.9"],
}


def sweep_file(folder: Path, content: Any = SWEEP) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False) if not isinstance(content, str) else content)
    return str(path)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four, and two of its members alone, in `alone/`."""
    folder = tmp_path_factory.mktemp("sweep")
    before = Path.cwd()
    os.chdir(folder)
    try:
        config = str(write(folder, trainer=TRAINER))
        main(["fit", "--config", config, "--sweep", sweep_file(folder)])
        for name, words in ALONE.items():
            main(["fit", "--config", config, f"--name={name}", "--runs_dir=alone", *words])
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("name", ALONE)
def test_each_run_is_the_one_that_it_would_be_alone(swept: Path, name: str) -> None:
    member, alone = swept / "runs" / "small" / name / "version_0", swept / "alone" / name / "version_0"
    weights, expected = (load_file(run / "transcoder" / "model.safetensors") for run in (member, alone))
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(weights[key], value), key
    results, numbers = (json.loads((run / "results.json").read_text()) for run in (member, alone))
    assert results["metrics"] == numbers["metrics"]
    states = [torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (member, alone)]
    assert states[0]["random_states"][0]["torch"].equal(states[1]["random_states"][0]["torch"])
    assert states[0]["global_step"] == 6
    # its config is that of a run of its own
    config = yaml.safe_load((member / "config.yaml").read_text())
    assert (config["runs_dir"], config["name"]) == (str(swept / "runs" / "small"), name)


def test_the_backbone_runs_once_for_all(swept: Path) -> None:
    content = json.loads((swept / "runs" / "small" / "sweep.json").read_text())
    assert list(content["runs"]) == ["k=2", "k=4", "topk", "other"]
    # each: 1 for the normalisation, 6 steps, 2 validations. The normalisation's batch is the first step's, and both
    # validations see the same images. The cascade wants another form of the forward: where one member begins it
    # later, its 4 are its own
    assert content["forwards"] == {"asked": 4 * 9, "run": 9 - 2 + 4}
    assert {entry["state"] for entry in content["runs"].values()} == {"finished"}
    for name, entry in content["runs"].items():
        assert entry["numbers"]["val/fvu/all"] == entry["fvu"]
        assert (swept / "runs" / "small" / entry["folder"]).name == "version_0"
        assert entry["folder"].startswith(name)
    assert (swept / "runs" / "small" / "sweep.svg").stat().st_size > 1000


def test_it_goes_on_and_adds_to_the_table(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(swept)
    words = ["fit", "--config", "config.yaml", "--ckpt_path", "last", "--sweep"]
    main([*words, sweep_file(swept, {"grid": {"model.transcoder.activation.init_args.k": [2]}, "runs": {"new": None}})])
    said = capsys.readouterr().out
    assert "nothing to do: the run in runs/small/k=2/version_0 is finished" in said
    content = json.loads((swept / "runs" / "small" / "sweep.json").read_text())
    assert list(content["runs"]) == ["k=2", "k=4", "topk", "other", "new"]
    assert content["runs"]["k=2"]["fvu"] is not None  # as the sweep before has found it


def test_one_interrupt_stops_all_and_they_go_on(tmp_path: Path) -> None:
    config = write(tmp_path, trainer=TRAINER | {"max_steps": 400, "val_check_interval": 400})
    members = {"runs": {"a": {"model.transcoder.n_features": 48}, "b": {"model.seed": 3}}}
    words = ["fit", "--config", str(config), "--sweep", sweep_file(tmp_path, members)]
    started = subprocess.Popen(
        [sys.executable, "-m", "clt_lightning", *words],
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lasts = [tmp_path / "runs" / "small" / name / "version_0" / "checkpoints" / "last.ckpt" for name in "ab"]
    deadline = time.monotonic() + 120
    while not all(last.exists() for last in lasts):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGUSR1)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 75, said
    assert "stopped by SIGUSR1 at step" in said
    assert re.search(r"fit --config \S+ --sweep \S+ --ckpt_path last", said)
    steps = [torch.load(last, weights_only=True)["global_step"] for last in lasts]
    assert max(steps) - min(steps) <= 1 < min(steps) < 400


def test_progress_counts_optimizer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of batches that are accumulated there are more."""
    counted: dict[str, int] = {"planned": 0, "done": 0}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Together, "plan", lambda self, steps: counted.update(planned=counted["planned"] + steps))
    monkeypatch.setattr(Together, "step", lambda self: counted.update(done=counted["done"] + 1))
    sweep = sweep_file(tmp_path, {"runs": {"a": None, "b": {"model.seed": 3}}})
    words = ["--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=0"]
    main(["fit", "--config", str(write(tmp_path)), "--sweep", sweep, *words])
    assert counted == {"planned": 4, "done": 4}


# -- the file --------------------------------------------------------------------------------------------------------


def test_names_tell_the_members_apart(tmp_path: Path) -> None:
    grid = {
        "model.transcoder.n_features": [8, 16],
        "model.optimizer.init_args.lr": [1e-3],
        "model.transcoder.activation": [{"class_path": "clt_lightning.TopK", "init_args": {"k": 2}}],
        "model.transcoder.topology": ["per_layer"],
        "model.tokens.set": ["all"],
    }
    found = read_members(sweep_file(tmp_path, {"grid": grid}))
    assert [m.name for m in found] == [f"n_features={n}_lr=0.001_TopK-k=2_per_layer_all" for n in (8, 16)]
    assert found[1].words()[:2] == ["--model.transcoder.n_features=16", "--model.optimizer.init_args.lr=0.001"]
    grid = {"model.loss.cascade.start": [0, 1], "model.schedule.start": [2]}
    assert [m.name for m in read_members(sweep_file(tmp_path, {"grid": grid}))] == [
        "cascade.start=0_schedule.start=2",
        "cascade.start=1_schedule.start=2",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "grid:\n  data.init_args.batch_size: [1]\n",
            "line 2: data.init_args.batch_size cannot differ .* same batches",
        ),
        ("grid:\n  seed_everything: [1, 2]\n", "line 2: seed_everything cannot differ .* vary model.seed"),
        ("runs:\n  a:\n    model: {backbone: {pretrained: demo}}\n", "line 2: model.backbone.* one forward"),
        ("grid:\n  model.seed: 3\n", r"line 2: model.seed needs a list of values, such as \[8, 16\], got 3"),
        ("grid:\n  model.seed: []\n", "line 2: model.seed needs a list"),
        ("grids: {}\n", "line 1: 'grids' is neither `grid`"),
        ("{}", "neither `grid`"),
        ("grid: {}\n", "no runs"),
        ("runs:\n  a/b: {model.seed: 1}\n", "line 2: 'a/b' is no name of a run"),
        ("runs:\n  version_3: {model.seed: 1}\n", "line 2: 'version_3' is no name of a run"),
        ("runs:\n  a: 3\n", "line 2: a needs settings"),
        ("grid:\n  model.seed: [1, 1]\n", "two runs would be named 'seed=1'"),
        ("grid:\n  model.seed: [1, 2\n", "line"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_members(sweep_file(tmp_path, content))


@pytest.mark.parametrize(
    ("runs", "words", "told"),
    [
        ({"a": {"model.transcoder.n_featuers": 3}}, [], "sweep.yaml, line 2, a: .*n_featuers.*n_features"),
        ({"a": {"model.seed": 1}, "b": {"model.transcoder.n_features": "many"}}, [], "line 4, b: .*n_features"),
        ({"a": None, "b": {"model.transcoder.activation.init_args.k": -1}}, [], "line 3, b: .*k must be"),
        (
            {"a": {"model.seed": 1}},
            ["--trainer.devices=2"],
            "a sweep runs in one process .* ask for 2",
        ),
    ],
)
def test_nothing_is_trained_where_one_cannot_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: dict[str, Any],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(write(tmp_path)), "--sweep", sweep_file(tmp_path, {"runs": runs}), *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.search(told, said), said
    assert len(said.splitlines()) <= 8
    assert not list(tmp_path.glob("runs/**/*.*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["validate", "--sweep", "x.yaml"], "--sweep is for fit; validate takes one run"),
        (["fit", "--sweep"], "--sweep needs"),
        (["fit", "--sweep", "a.yaml", "--sweep=b.yaml"], "--sweep is given once"),
        (["fit", "--config", "configs/quickstart.yaml", "--sweep", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert told in capsys.readouterr().err


def test_the_front_is_what_no_other_beats() -> None:
    points = {"a": (1.0, 0.5), "b": (2.0, 0.3), "c": (2.0, 0.4), "d": (3.0, 0.3), "e": (0.5, float("nan"))}
    made = [Outcome(n, {}, numbers={"val/l0/all": l0, "val/fvu/all": fvu}) for n, (l0, fvu) in points.items()]
    assert best(made) == {"a", "b"}


def test_a_key_that_is_set_twice(tmp_path: Path) -> None:
    twice = {"a": {"model": {"transcoder": {"topology": "per_layer"}}, "model.transcoder.topology": "sae"}}
    with pytest.raises(UserError, match=r"line 2: a sets model\.transcoder\.topology twice"):
        read_members(sweep_file(tmp_path, {"runs": twice}))
    within = {"model.transcoder.activation": {"class_path": "TopK"}, "model.transcoder.activation.init_args.k": 3}
    with pytest.raises(UserError, match=r"a sets model\.transcoder\.activation\.init_args\.k twice \(also by"):
        read_members(sweep_file(tmp_path, {"runs": {"a": within}}))

"""`--run FOLDER` is the run's own config, place and checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clt_lightning.analysis import Run, open_run
from clt_lightning.cli.main import main
from clt_lightning.cli.run_option import expand_run
from clt_lightning.core.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "quick" / "version_3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {}\n")
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


@pytest.mark.parametrize("form", [["--run", "{}"], ["--run={}"]])
def test_expands_to_what_the_run_was_made_with(run: Path, form: list[str]) -> None:
    words = ["test", "--evaluate.bootstrap", "7", *(word.format(run) for word in form)]
    expanded, of_run = expand_run(words)
    assert of_run
    pairs = dict(zip(expanded[1::2], expanded[2::2]))
    assert expanded[0] == "test"
    assert pairs == {
        "--config": str(run / "config.yaml"),
        "--runs_dir": str(run.parent.parent),
        "--name": "quick",
        "--version": "3",
        "--ckpt_path": str(run / "checkpoints" / "last.ckpt"),
        "--evaluate.bootstrap": "7",
    }
    assert expanded[-2:] == ["--evaluate.bootstrap", "7"]  # after the run's own: what is given wins


def test_a_checkpoint_that_is_named_wins(run: Path) -> None:
    expanded, _ = expand_run(["validate", "--run", str(run), "--ckpt_path", "other.ckpt"])
    assert expanded.count("--ckpt_path") == 1
    assert expanded[-1] == "other.ckpt"


def test_words_without_a_run_stay_as_they_are(run: Path) -> None:
    for words in (["test", "--config", "a.yaml"], ["fit", "--run", str(run)]):
        assert expand_run(words) == (words, False)


def test_mistakes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run's folder"):
        expand_run(["test", "--run", str(tmp_path)])
    with pytest.raises(UserError, match="--run needs a folder"):
        expand_run(["test", "--run"])
    with pytest.raises(UserError, match="more than once"):
        expand_run(["test", "--run", str(run), "--run", str(run)])
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        expand_run(["test", "--run", str(run)])
    with pytest.raises(UserError, match=r"holds no config\.yaml"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="holds no transcoder/ folder"):
        open_run(run)


def test_samples_of_data_without_labels() -> None:
    batch = {"image": torch.arange(2.0)[:, None], "key": ["a", "b"]}
    found = Run.samples(SimpleNamespace(batches=lambda split: [batch]), ["b"])  # type: ignore[arg-type]
    assert float(found["b"][0]) == 1
    assert found["b"][1] == -1


@pytest.mark.parametrize("words", [["--strength", "2"], ["--gate", "0.5"], ["--layers", "2"], ["--arms", "vs2"]])
def test_steer_says_which_options_would_do_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["steer", "--run", "nowhere", "--set", "0/1=2", *words])
    assert f"{words[0]} is an option of --amplify" in capsys.readouterr().err

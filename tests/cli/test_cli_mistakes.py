"""A mistake in a config or on the command line: exit code 2, at most 8 lines, and the word that helps among them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from clt_lightning.cli.main import main

# a mistake that is not noticed ends soon, and fails the test
BASE = """
name: small
model:
  backbone: {pretrained: demo}
  transcoder: {n_features: 32, activation: {class_path: BatchTopK, init_args: {k: 4}}}
  schedule: {decay: none}
  tokens: {statistics: 64}
data:
  class_path: Demo
  init_args: {root: ROOT, n_train: 16, n_test: 8, batch_size: 8}
trainer: {max_steps: 1, accelerator: cpu, devices: 1, limit_val_batches: 0, logger: false, enable_progress_bar: false}
"""

Said = Callable[..., str]


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Runs a command that must fail, and gives its message."""
    (tmp_path / "base.yaml").write_text(BASE.replace("ROOT", str(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    # Lightning's log handler keeps the standard error of the test that imported it first
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def run(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        text = capsys.readouterr().err
        assert stopped.value.code == 2, text
        assert "Traceback" not in text
        assert "usage:" not in text
        lines = text.strip().splitlines()
        assert len(lines) <= 8, text
        assert any(line.startswith("error: ") for line in lines)
        return text

    return run


# text of a second config, the line that is named (None: none), words of the message
IN_YAML: list[tuple[str, int | None, list[str]]] = [
    ("modle: {}", 1, ["modle", "did you mean model?"]),
    ("trianer: {max_steps: 3}", 1, ["did you mean trainer?"]),
    ("max_steps: 5", 1, ["trainer.max_steps"]),
    ("n_features: 5", 1, ["model.transcoder.n_features"]),
    ("trainer:\n  lr: 0.1", 2, ["model.optimizer.init_args.lr"]),
    ("model:\n  transcoder:\n    n_feature: 3", 3, ["model.transcoder has no key n_feature", "n_features"]),
    ("model:\n  loss:\n    auxk:\n      coeficient: 1", 4, ["did you mean coefficient?"]),
    ("model:\n  loss:\n    cascades: {stream: 1}", 3, ["did you mean cascade?"]),
    ("data:\n  init_args:\n    batchsize: 3", 3, ["Demo takes no batchsize", "batch_size"]),
    ("data:\n  batch_size: 3\n  class_path: Demo", 2, ["data.init_args.batch_size"]),
    ("trainer:\n  max_steps: abc", 2, ["trainer.max_steps: expected a whole number", "abc"]),
    ("trainer:\n  max_steps: 1.5", 2, ["expected a whole number", "1.5"]),
    ("trainer:\n  max_steps: true", 2, ["expected a whole number", "true"]),
    ("trainer:\n  gradient_clip_val: strong", 2, ["expected", "a number", "strong"]),
    ("model:\n  transcoder:\n    skip: maybe", 3, ["expected true or false", "maybe"]),
    ("model:\n  loss:\n    layer_weights: 3", 3, ["expected a list"]),
    ("name: 5", 1, ["expected text", "'5'"]),
    ("model: 3", 1, ["model: expected a table"]),
    ("trainer: null", 1, ["trainer: expected a table"]),
    ("model:\n  schedule:\n    decay: linaer", 3, ["linear, cosine, none", "did you mean linear?"]),
    ("model:\n  transcoder:\n    topology: crosslayer", 3, ["did you mean cross_layer?"]),
    ("model:\n  schedule:\n    warmup_steps: -3", 3, ["schedule.warmup_steps must not be negative"]),
    ("model:\n  loss:\n    l1: {coefficient: .nan}", 3, ["loss.l1.coefficient must be a number"]),
    ("data:\n  class_path: CIFAR10", 2, ["CIFAR100, COCO, Demo, ImageNet100", "WebImages"]),
    ("data: imagenet100", 1, ["ImageNet100"]),
    ("data:\n  class_path: clt_lightning.data.Dmo", 2, ["Demo"]),
    ("data:\n  class_path: no_such_package.Images", 2, ["no module no_such_package"]),
    ("data:\n  class_path: torch.optim.Adam", 2, ["is no data set", "CIFAR100"]),
    (
        "model:\n  transcoder:\n    activation: TopKK",
        3,
        ["there are: ", "AbsTopK", "BatchTopK", "JumpReLU", "ReLU", "TopK"],
    ),
    ("model:\n  transcoder:\n    activation: {init_args: {k: 1.5}}", 3, ["init_args.k: expected a whole number"]),
    ("model:\n  transcoder:\n    activation: {init_args: {kk: 2}}", 3, ["BatchTopK takes no kk", "did you mean k?"]),
    ("model:\n  transcoder:\n    activation: {init_args: {k: 0}}", None, ["k must be at least 1, got 0"]),
    ("model:\n  optimizer: {class_path: torch.optim.Adamm}", 2, ["Adam, ", "AdamW"]),
    ("model:\n  optimizer: AdamW", 2, ["torch.optim.AdamW", "clt_lightning.training.optim.AdamW"]),
    ("model:\n  optimizer:\n    init_args: {lr: fast}", 3, ["init_args.lr: expected a number"]),
    ("model:\n  optimizer:\n    init_args: {lr: -0.1}", 3, ["init_args.lr", "-0.1"]),
    ("model:\n  optimizer:\n    init_args: {learning_rate: 1}", 3, ["AdamW takes no learning_rate", " lr"]),
    ("trainer:\n  precision: bf17", 2, ["bf16-mixed", "32-true"]),
    ("trainer:\n  precision: bf16-true", 2, ["bf16-mixed"]),
    ("trainer:\n  precision: 16-true", 2, ["16-mixed"]),
    ("trainer:\n  strategy: dpp", 2, ["did you mean ddp?"]),
    ("trainer:\n  accelerator: cpuu", 2, ["did you mean cpu?"]),
    ("trainer:\n  devices: two", 2, ["trainer.devices", "a number"]),
    ("trainer:\n  devices: 640", 2, ["640 processes", "--trainer.devices="]),
    ("trainer:\n  profiler: simpel", 2, ["did you mean simple?"]),
    ("trainer:\n  gradient_clip_algorithm: nrom", 2, ["did you mean norm?"]),
    ("trainer:\n  max_time: soon", 2, ["trainer.max_time", "DD:HH:MM:SS"]),
    ("trainer:\n  callbacks: [EarlyStoping]", 2, ["EarlyStopping"]),
    ("trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitr: x}", 4, ["did you mean monitor?"]),
    ("trainer:\n  callbacks:\n  - class_path: EarlyStopping", 2, ["EarlyStopping needs monitor"]),
    ("trainer:\n  callbacks: LearningRateFinder", 2, ["LearningRateFinder", "--model.optimizer.init_args.lr"]),
    ("trainer:\n  logger: CsvLoger", 2, ["CSVLogger"]),
    ("trainer:\n  logger:\n    class_path: CSVLogger\n    init_args: {savedir: x}", 4, ["did you mean save_dir?"]),
    ("zero_shot:\n  token_sets: [clss]", 2, ["cls", "patch", "all"]),
    ("checkpoints:\n  keep: two", 2, ["checkpoints.keep: expected a whole number"]),
    ("evaluate:\n  features: {words: nowhere.txt}", 2, ["there is no file", "nowhere.txt"]),
    ("name: ../elsewhere", 1, ["one plain folder name"]),
    ("name: /tmp/elsewhere", 1, ["one plain folder name"]),
    ("name: ''", 1, ["one plain folder name"]),
    ("runs_dir: $NO_SUCH_VARIABLE/runs", 1, ["the environment variable NO_SUCH_VARIABLE is not set"]),
    (
        "data:\n  init_args:\n    root: ${NO_SUCH_VARIABLE}/x",
        3,
        ["the environment variable NO_SUCH_VARIABLE is not set"],
    ),
    ("data:\n  init_args:\n    augment: flipp", 3, ["did you mean flip?"]),
    ("data:\n  init_args:\n    shard_counts: {test: [a]}", 3, ["a list (of: a whole number)"]),
    ("model:\n  clip\n    pretrained: demo", 3, ["a colon too many", "line above"]),
    ("model: {backbone: {name: x}", 2, ["bracket not closed"]),
    ("model:\n\tclip: 3", 2, ["a tab stands where spaces belong"]),
    ('name: "x', 2, ["quote or bracket not closed"]),
    ("trainer:\n  max_steps: 3\n  max_steps: 4", 3, ["trainer.max_steps stands twice", "line 2"]),
    ("- a\n- b", None, ["no table", "a list"]),
    ("hello", None, ["no table", "plain text"]),
    ("model: !!python/object/apply:os.system [ls]", 1, ["not YAML"]),
]


@pytest.mark.parametrize(("text", "line", "words"), IN_YAML, ids=[text.replace("\n", "|") for text, *_ in IN_YAML])
def test_in_a_config(text: str, line: int | None, words: list[str], said: Said, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(text + "\n")
    message = said("fit", "--config", "base.yaml", "--config", "more.yaml")
    assert line is None or f"more.yaml, line {line}" in message
    for word in words:
        assert word in message


ON_THE_COMMAND_LINE: list[tuple[list[str], list[str]]] = [
    (["--trainer.max_step=5"], ["--trainer.max_step", "max_steps"]),
    (["--max_steps", "5"], ["trainer.max_steps"]),
    (["--trainer.max_steps"], ["--trainer.max_steps needs a value"]),
    (["--trainer.limit_val_batches=some"], ["expected", "a number"]),
    (["--config", "bsae.yaml"], ["--config bsae.yaml: no such file", "base.yaml"]),
    (["--config"], ["--config needs a file"]),
    (["--config", "."], ["cannot be read"]),
    (["base.yaml"], ["--config base.yaml"]),
    (["-x"], ["no option -x"]),
    (["--data", "CIFAR10"], ["CIFAR100, COCO"]),
    (["--data.batchsize=3"], ["Demo takes no batchsize", "batch_size"]),
    (["--data.help", "CIFAR10"], ["CIFAR100, COCO"]),
    (["--model.transcoder.activation", "TopKK"], ["TopK"]),
    (["--model.transcoder.activation.k=1.5"], ["expected a whole number, got 1.5"]),
    (["--model.optimizer.lr=-3"], ["lr", "-3"]),
    (["--model.backbone", "nowhere.yaml"], ["nowhere.yaml: no such file"]),
    (["--trainer.callbacks+=EarlyStoping"], ["EarlyStopping"]),
    (["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitr=x"], ["did you mean monitor?"]),
    (["--trainer.accelerator=tpu"], ["--trainer.accelerator=cpu"]),
    (["--name=../../x"], ["one plain folder name"]),
    (["--ckpt_path=https://example.org/a.ckpt"], ["download it first"]),
    (["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
    (["--weights_only=false"], ["no key weights_only"]),
    (["--run=runs/small"], ["--ckpt_path last"]),
]


@pytest.mark.parametrize(("options", "words"), ON_THE_COMMAND_LINE, ids=lambda v: " ".join(v))
def test_on_the_command_line(options: list[str], words: list[str], said: Said) -> None:
    message = said("fit", "--config", "base.yaml", *options)
    for word in words:
        assert word in message


OTHERS: list[tuple[list[str], list[str]]] = [
    (["fit"], ["--config"]),
    (["fit", "--trainer.max_steps=3"], ["--config", "--data"]),
    (["validate"], ["--run", "--ckpt_path"]),
    (["test"], ["--run", "--ckpt_path"]),
    (["predict"], ["--run", "--ckpt_path"]),
    (["test", "--run", "nowhere"], ["nowhere"]),
    (["train"], ["fit, validate, test, predict"]),
    (["tset"], ["did you mean test?"]),
    (["--config", "base.yaml"], ["the command comes first"]),
    (["report"], ["--run"]),
    (["report", "--runn", "x"], ["did you mean --run?"]),
    (["report", "--run", "x", "--image", "1", "--thumbnal", "3"], ["--thumbnail"]),
    (["report", "--run", "x", "--images", "many"], ["--images: expected a whole number, got 'many'"]),
    (["steer", "--run", "x", "--scale", "0/0"], ["LAYER/FEATURE=VALUE"]),
    (["steer", "--run", "x", "--tokens", "patches"], ["did you mean patch?"]),
    (["plan"], ["--config"]),
    (["plan", "--config", "nowhere.yaml"], ["--config nowhere.yaml: no such file"]),
    (["plan", "--config", "base.yaml", "--gpu", "2"], ["--gpus"]),
    (["plan", "--config", "base.yaml", "--gpus", "two"], ["--gpus: expected a whole number, got 'two'"]),
    (["plan", "--config", "base.yaml", "--gpu_memory", "lots"], ["80GB"]),
    (["export", "--output", "y"], ["--run", "--ckpt_path"]),
    (["export", "--run", "x", "--output", "y", "--format", "circuit_tracer"], ["did you mean circuit-tracer?"]),
    (["export", "--ckpt_path", "https://example.org/a.ckpt", "--output", "y"], ["download it first"]),
    (["shard"], ["cifar100"]),
    (["shard", "cifar10"], ["did you mean cifar100?"]),
    (["shard", "folder", "--source", "x", "--output", "y", "--test-fracton", "0.2"], ["--test-fraction"]),
    (
        ["shard", "folder", "--source", "x", "--output", "y", "--limit", "few"],
        ["--limit: must be a number, 1 or more, but is few"],
    ),
]


@pytest.mark.parametrize(("command", "words"), OTHERS, ids=lambda v: " ".join(v))
def test_of_any_command(command: list[str], words: list[str], said: Said) -> None:
    message = said(*command)
    for word in words:
        assert word in message


def test_a_key_that_plan_does_not_know(said: Said, tmp_path: Path) -> None:
    """It would plan for the default in its place."""
    (tmp_path / "wide.yaml").write_text("model:\n  transcoder:\n    n_feature: 99\n")
    assert "wide.yaml, line 3: model.transcoder has no key n_feature" in said("plan", "--config", "wide.yaml")

"""A config that a run keeps can be read back, overlays change what they name, and the help tells of what it should."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clt_lightning.cli.config_cli import ConfigCLI
from clt_lightning.cli.main import main
from clt_lightning.cli.parser import Parser
from clt_lightning.cli.written import check_readable
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import Activation, TopK
from tests.cli.small import CONFIG, write

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def printed(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([command, *words, "--print_config"])
    captured = capsys.readouterr()
    assert stopped.value.code == 0, captured.err
    assert "Unable to serialize" not in captured.out
    content: dict[str, Any] = yaml.safe_load(captured.out)
    return content


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_all_defaults_can_be_printed_and_read_back(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = printed(capsys, command, "--data", "Demo")
    assert first["model"]["transcoder"]["activation"] == {"class_path": "clt_lightning.TopK", "init_args": {"k": 64}}
    assert first["model"]["optimizer"]["class_path"] == "clt_lightning.training.optim.AdamW"
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(first))
    assert printed(capsys, command, "--config", str(tmp_path / "printed.yaml")) == first


def test_a_run_that_names_no_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"backbone": {"pretrained": "demo"}, "schedule": {"decay": "none"}, "tokens": {"statistics": 64}}
    main(["fit", "--config", str(write(tmp_path, model=model)), "--model.transcoder.n_features=96"])
    run = tmp_path / "runs" / "small" / "version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["transcoder"]["activation"]["class_path"] == "clt_lightning.TopK"
    main(["validate", "--run", str(run)])
    again = printed(capsys, "fit", "--config", str(run / "config.yaml"))
    assert again == saved | {"ckpt_path": None}


def test_what_cannot_be_read_back_is_told_before_the_training() -> None:
    parser = Parser(exit_on_error=False)
    parser.add_argument("--activation", type=Activation)
    good = parser.parse_object({"activation": {"class_path": "clt_lightning.TopK", "init_args": {"k": 3}}})
    check_readable(parser, good)
    bad = good.clone()
    bad.activation = TopK(3)
    with pytest.raises(UserError, match="activation: Unable to serialize"):
        check_readable(parser, bad)


@pytest.mark.parametrize("name", ["topk", "abs_topk", "batch_topk", "jumprelu", "relu"])
@pytest.mark.parametrize("base", ["quickstart", "vitb16"])
def test_an_overlay_changes_the_activation_and_not_the_budget(
    base: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(CONFIGS / f"{base}.yaml")]
    before = printed(capsys, "fit", *words)
    after = printed(capsys, "fit", *words, "--config", str(CONFIGS / "activation" / f"{name}.yaml"))
    activation = after["model"]["transcoder"]["activation"]
    assert activation["class_path"].rpartition(".")[2].lower() == name.replace("_", "")
    k = before["model"]["transcoder"]["activation"]["init_args"]["k"]
    assert activation["init_args"].get("k", k) == k
    assert {**after, "model": None} == {**before, "model": None}
    changed = {key for key in after["model"] if after["model"][key] != before["model"][key]}
    assert changed <= {"transcoder", "loss"}
    for part in ("l1", "tanh", "pre_activation"):  # a warm-up that fits into every run
        assert after["model"]["loss"][part]["warmup_steps"] == 0
        assert after["model"]["loss"][part]["warmup_fraction"] < 0.5


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    usage, rest = text.split("\n\n", 1)
    assert len(usage.splitlines()) <= 3
    assert "--config FILE" in usage
    assert "--ckpt_path" in usage
    assert ("--run FOLDER" in text) == (command != "fit")
    assert "weights_only" not in text
    ckpt = re.search(r"^  --ckpt_path .*?(?=^  -|\Z)", rest, re.MULTILINE | re.DOTALL)
    assert ckpt is not None
    assert "`last`" in ckpt[0]
    assert command == "fit" or "`best`" in ckpt[0]
    headers = [line for line in rest.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert len(headers) > 20
    assert not any("advantage" in header or "full optimization" in header for header in headers)  # Lightning's own
    for key in ("trainer", "model.transcoder", "model.loss.auxk", "data", "zero_shot", "evaluate.cascade"):
        assert any(header.startswith(f"{key}: ") for header in headers), key


def test_a_warm_up_that_the_run_never_ends_is_told() -> None:
    from clt_lightning.training.losses import L1Config, LossConfig

    long = LossConfig(l1=L1Config(0.2, warmup_steps=10_000))
    assert long.never_reached(20_000) == []
    (told,) = long.never_reached(1_100)
    assert "model.loss.l1.warmup_steps (10000) exceeds trainer.max_steps (1100)" in told
    assert "0.022 in the place of 0.2" in told
    assert LossConfig().never_reached(5) == []
    with pytest.raises(UserError, match=r"loss\.l1\.warmup_fraction needs the length of the run"):
        LossConfig(l1=L1Config(0.2, warmup_fraction=0.1)).never_reached(-1)
    with pytest.raises(UserError, match="not both"):
        L1Config(0.2, 3, 0.1)


class EnoughError(Exception):
    """Ends a command where its config is read."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The config of a command as its model, data and trainer would be made from."""

    def stop(cli: ConfigCLI) -> None:
        raise EnoughError(cli.config[cli.command])

    def reading(*words: str) -> Any:
        monkeypatch.setattr(ConfigCLI, "instantiate_classes", stop)
        with pytest.raises(EnoughError) as stopped:
            main(list(words))
        return stopped.value.args[0]

    return reading


def test_what_is_given_beside_a_checkpoint_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    """Lightning would put the checkpoint's own settings over the command line's, so that nothing could be moved."""
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(write(tmp_path)), "--model.transcoder.n_features=48"])
    run = str(tmp_path / "runs" / "small" / "version_0")
    checkpoint = f"{run}/checkpoints/last.ckpt"
    found = read("test", "--run", run, "--model.backbone.pretrained=./elsewhere.pt", "--evaluate.bootstrap=7")
    assert found.model.backbone.init_args.pretrained == "./elsewhere.pt"  # not there, so not known for a path
    assert found.evaluate.bootstrap == 7
    assert found.model.transcoder.n_features == 48
    # a config of another model takes the checkpoint's
    words = ["validate", "--config", str(tmp_path / "config.yaml"), "--ckpt_path", checkpoint]
    assert read(*words).model.transcoder.n_features == 48
    found = read(*words, "--model.transcoder.backend=dense", "--model.tokens.statistics", "9")
    assert (found.model.transcoder.backend, found.model.tokens.statistics) == ("dense", 9)
    assert found.model.transcoder.n_features == 48
    # arguments of a class, with and without `init_args`
    found = read(*words, "--model.backbone.precision=fp64", "--model.transcoder.activation.init_args.k=3")
    assert found.model.backbone.init_args.precision == "fp64"
    assert found.model.backbone.init_args.pretrained == "demo"
    assert found.model.transcoder.activation.init_args.k == 3


def test_a_monitor_that_nobody_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    stopping = [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/fvu/al"}}]
    config = write(tmp_path, trainer=CONFIG["trainer"] | {"callbacks": stopping})
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(config)])
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert "val/fvu/al" in text
    assert "val/fvu/all" in text
    assert "Traceback" not in text


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("ours")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clt_lightning.backbone.clip.FrozenCLIP.__init__", broken)
    with pytest.raises(ValueError, match="ours") as found:
        main(["fit", "--config", str(write(tmp_path))])
    assert not isinstance(found.value, UserError)

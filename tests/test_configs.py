"""Every shipped config parses, with every overlay, and every key in it is explained."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from clt_lightning.cli.main import main
from clt_lightning.cli.sweep.members import Member, read_members


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning's log handler keeps the standard error of the test that imported it first
    monkeypatch.setattr(logging, "raiseExceptions", False)


CONFIGS = Path(__file__).parent.parent / "configs"
OVERLAYS = [*sorted(CONFIGS.glob("*/*.yaml")), CONFIGS / "skip.yaml", *CONFIGS.glob("attention*.yaml")]
SWEEP = CONFIGS / "sweep.yaml"
BASES = sorted(set(CONFIGS.glob("*.yaml")) - {*OVERLAYS, SWEEP})


def parsed(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict[str, Any]:
    """The whole config as the command line understands it."""
    options = [word for path in paths for word in ("--config", str(path))]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *options, "--print_config"])
    captured = capsys.readouterr()
    assert stopped.value.code == 0, captured.err
    result: dict[str, Any] = yaml.safe_load(captured.out)
    return result


def test_the_promised_configs_are_there() -> None:
    assert {"quickstart.yaml", "vitb32.yaml", "vitb16.yaml", "sae.yaml"} <= {p.name for p in BASES}
    overlays = {"cifar100.yaml", "coco.yaml", "imagenet100.yaml", "jumprelu.yaml", "residual.yaml", "output.yaml"}
    assert overlays <= {p.name for p in OVERLAYS}


@pytest.mark.parametrize("path", BASES, ids=lambda p: p.stem)
def test_bases_parse(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(capsys, path)
    assert config["model"]["transcoder"]["n_features"] > 0
    assert config["name"] == path.stem


@pytest.mark.parametrize("member", read_members(str(SWEEP)), ids=lambda m: m.name)
def test_members_of_the_sweep_parse(member: Member, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(CONFIGS / "quickstart.yaml"), *member.words(), "--print_config"])
    captured = capsys.readouterr()
    assert stopped.value.code == 0, captured.err


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_overlays_parse_over_a_base(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(capsys, CONFIGS / "vitb32.yaml", path)
    chosen = yaml.safe_load(path.read_text())
    if "class_path" in chosen.get("data", {}):
        assert config["data"]["class_path"].endswith(chosen["data"]["class_path"])
        assert config["data"]["init_args"]["batch_size"] == 64  # what the base says of batches stays
    elif path.parent.name == "paper":
        assert config["model"]["loss"]["cascade"]["stream"] == 0
        assert config["model"]["transcoder"]["skip"] is False
    elif path.stem == "skip":
        assert config["model"]["transcoder"]["skip"] is True
    elif path.stem.startswith("attention") and path.parent == CONFIGS:
        assert config["model"]["attention"]["n_features"] == chosen["model"]["attention"]["n_features"] > 0
        assert config["model"]["attention"]["activation"]["init_args"] == {"k": 16}
        assert config["model"]["tokens"]["per_image"] is None  # whole images, whatever the base takes of them
        assert config["model"]["tokens"]["buffer"] == 0
    elif path.parent.name == "site":
        assert config["model"]["transcoder"]["sites"] == chosen["model"]["transcoder"]["sites"]
        assert config["model"]["transcoder"]["topology"] == "sae"
        assert config["model"]["loss"]["cascade"]["stream"] == 0
    else:
        wanted = chosen["model"]["transcoder"]["activation"]["class_path"]
        assert config["model"]["transcoder"]["activation"]["class_path"].endswith(wanted)


@pytest.mark.parametrize("path", BASES, ids=lambda p: p.stem)
def test_the_features_explain_everything_unless_asked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = parsed(capsys, path)["model"]
    assert model["transcoder"]["skip"] is False
    assert model["revive"]["speed"] > 0


@pytest.mark.parametrize("path", BASES, ids=lambda p: p.stem)
def test_configs_say_what_they_reproduce_and_explain_their_keys(path: Path) -> None:
    text = path.read_text()
    for word in ("# What:", "# Hardware:", "# Command:"):
        assert word in text
    values = [line for line in text.splitlines() if re.match(r"\s*[a-z_]+: \S", line) and not line.startswith("#")]
    assert not [line for line in values if "#" not in line]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.transcoder.n_feature=3", "n_feature"),
        ("--model.transcoder.n_features=many", "n_features"),
        ("--model.transcoder.activation.class_path=TopQ", "TopQ"),
        ("--model.backbone.precision=fp8", "precision"),
        ("--data.init_args.batch=3", "batch"),
        ("--trainer.max_step=5", "max_step"),
    ],
)
def test_a_wrong_key_or_type_is_one_message(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(CONFIGS / "quickstart.yaml"), option])
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text


def test_a_missing_data_folder_says_which_command_makes_the_tars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        f"--data.init_args.root={tmp_path / 'nowhere'}",
        "--model.backbone.pretrained=demo",
        f"--runs_dir={tmp_path}",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(CONFIGS / "vitb32.yaml"), *options, "--trainer.accelerator=cpu"])
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert "clt_lightning shard cifar100 --source" in text
    assert "Traceback" not in text


def test_a_gelu_mismatch_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistake 9: open_clip only warns."""
    options = ["--model.backbone.name=ViT-B-32", f"--runs_dir={tmp_path}", f"--data.init_args.root={tmp_path}"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(CONFIGS / "vitb32.yaml"), *options, "--trainer.accelerator=cpu"])
    assert stopped.value.code == 2
    assert "ViT-B-32-quickgelu" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "shard", "export"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: python -m clt_lightning" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2
    assert "there are: fit" in capsys.readouterr().err


def test_a_backbone_of_another_class_begins_from_its_own_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The usual class's `openai` is no tag of timm's; what a file says stays where the other class takes it."""
    bare, small = tmp_path / "bare.yaml", tmp_path / "small.yaml"
    bare.write_text("model: {backbone: {class_path: FrozenViT}}\n")
    small.write_text("model: {backbone: FrozenViT}\n")
    for path in (bare, small):
        found = parsed(capsys, CONFIGS / "data" / "demo.yaml", path)["model"]["backbone"]
        assert found["class_path"].endswith("FrozenViT")
        assert found["init_args"]["pretrained"] == "default"
        assert found["init_args"]["name"].startswith("vit_")
    over = parsed(capsys, CONFIGS / "vitb32.yaml", bare)["model"]["backbone"]["init_args"]
    assert (over["precision"], over["pretrained"]) == ("bf16", "openai")
    flat = tmp_path / "flat.yaml"
    flat.write_text("model: {backbone: {pretrained: demo}}\n")
    plain = parsed(capsys, CONFIGS / "data" / "demo.yaml", flat)["model"]["backbone"]
    assert plain["class_path"].endswith("FrozenCLIP")
    assert plain["init_args"]["pretrained"] == "demo"

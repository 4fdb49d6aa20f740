"""The recipes for an activation and a term of the loss: run as CONTRIBUTING.md has them, from outside the package."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clt_lightning.analysis import open_run
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.training.module import CLTModule
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.cli.small import CONFIG
from tests.cli.small import write as write_config

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
ACTIVATION, LOSS = "An activation", "A term of the loss"


def block(title: str, kind: str) -> str:
    """The one block of a kind under a heading."""
    section = re.search(rf"^### {title}\n(.*?)(?=^### |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert section is not None, title
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    return str(found)


def settings(title: str) -> dict[str, Any]:
    """A recipe's YAML."""
    found: dict[str, Any] = yaml.safe_load(block(title, "yaml"))
    return found


def forget() -> None:
    """As a process that has not imported the parts."""
    for name in [name for name in sys.modules if name.split(".")[0] == "my_parts"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with both parts."""
    folder = tmp_path_factory.mktemp("outside")
    for title in (ACTIVATION, LOSS):
        first, _, code = block(title, "python").partition("\n")
        assert len(code.splitlines()) <= 40
        path = folder / first.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    sys.path.insert(0, str(folder))
    model: dict[str, Any] = deepcopy(CONFIG["model"])
    model["transcoder"] |= settings(ACTIVATION)["model"]["transcoder"]
    model["loss"] = settings(LOSS)["model"]["loss"]
    data = CONFIG["data"] | {"init_args": CONFIG["data"]["init_args"] | {"root": str(folder / "data")}}
    trainer = CONFIG["trainer"] | {"log_every_n_steps": 1}
    config = write_config(folder, model=model, data=data, trainer=trainer, runs_dir=str(folder / "runs"))
    main(["fit", "--config", str(config)])
    yield folder / "runs" / "small" / "version_0"
    forget()
    sys.path.remove(str(folder))


def test_the_term_is_logged_by_its_name(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    assert [event.value > 0 for event in events.Scalars("train/loss/together")] == [True, True]
    assert "train/loss/reconstruction" in events.Tags()["scalars"]


def test_whoever_imported_the_class_opens_the_run(run: Path) -> None:
    clt = open_run(run).transcoder
    assert clt.activation.config() == {"class_path": "my_parts.near_top.NearTop", "init_args": {"share": 0.6}}
    module = CLTModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert [type(term).__name__ for term in module.loss_config.extra] == ["Together"]
    assert module.loss_config.extra[0].coefficient == 0.05


def test_others_must_trust_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    for load in (
        lambda **trust: CrossLayerTranscoder.from_pretrained(run / "transcoder", **trust),
        lambda **trust: CLTModule.load_from_checkpoint(checkpoint, **trust),
    ):
        forget()
        with pytest.raises(UserError, match=r"my_parts\.near_top\.NearTop .*trust=True"):
            load()
        assert "my_parts" not in sys.modules
        load(trust=True)
    forget()
    with pytest.raises(UserError, match="trust"):
        open_run(run)
    for command in (["validate"], ["export", "--output", str(run / "export")]):
        with pytest.raises(SystemExit):
            main([*command, "--run", str(run)])
        assert "--trust_config" in capsys.readouterr().err
        assert "my_parts" not in sys.modules
    main(["export", "--run", str(run), "--output", str(run / "export"), "--trust_config"])
    assert open_run(run, trust_config=True).transcoder.activation.scope == "token"

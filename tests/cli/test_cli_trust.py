"""A run's files may come from anybody: nothing that they name is run or imported."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clt_lightning.analysis import open_run
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.layout import expand
from clt_lightning.training.module import CLTModule
from tests.cli.small import CONFIG, write


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained")
    data = CONFIG["data"] | {"init_args": CONFIG["data"]["init_args"] | {"root": str(folder / "data")}}
    main(["fit", "--config", str(write(folder, data=data, runs_dir=str(folder / "runs")))])
    return folder / "runs" / "small" / "version_0"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "small" / "version_0"))


@pytest.fixture(autouse=True)
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there when code of a run's was run; beside it a module that Python finds, which leaves it."""
    mark = tmp_path / "it_ran"
    code = tmp_path / "code"
    code.mkdir()
    (code / "evil_module.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "import lightning, torch\n"
        "class Data(lightning.LightningDataModule): pass\n"
        "class Stop(lightning.Callback): pass\n"
        "class Adam(torch.optim.Adam): pass\n"
        "def call(*args, **kwargs): pass\n"
    )
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setattr(logging, "raiseExceptions", False)
    yield mark
    sys.modules.pop("evil_module", None)


def changed(run: Path, place: str, value: Any) -> None:
    """Puts a value into the run's config."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    *above, last = place.split(".")
    table = config
    for key in above:
        table = table.setdefault(key, {})
    table[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def spec(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
#: Where a config may name code, and what
NAMES: list[tuple[str, Any]] = [
    ("data", spec("os.system", command="touch PROOF")),
    ("data", spec("posix.system", command="touch PROOF")),
    ("data", spec("subprocess.Popen", args=["touch", "PROOF"])),
    ("data", spec("evil_module.Data")),
    ("data", {"class_path": "evil_module.Data", "dict_kwargs": {"a": 1}}),
    ("data", "evil_module.Data"),
    ("data", spec("clt_lightning.data.sets.base.os.system", command="touch PROOF")),
    ("data", spec("torch.serialization.os.system", command="touch PROOF")),
    ("data", spec("builtins.exec", source="open('PROOF', 'w')")),
    ("data.init_args.classnames", spec("evil_module.Data")),
    ("model.transcoder.activation", spec("evil_module.Data")),
    ("model.transcoder.activation", spec("evil_module.call")),
    ("model.optimizer", spec("evil_module.Adam", lr=1)),
    ("model.optimizer", "evil_module.Adam"),
    ("model.optimizer", "evil_module.call"),
    ("model.optimizer", "clt_lightning.training.module.default_optimizer"),
    ("model.optimizer.init_args.lr", "evil_module.call"),
    ("trainer.callbacks", [spec("evil_module.Stop")]),
    ("trainer.callbacks", ["evil_module.Stop"]),
    ("trainer.callbacks", [spec(LAMBDA, setup="evil_module.call")]),
    ("trainer.callbacks", [spec(LAMBDA, setup="os.system")]),
    ("trainer.callbacks", spec("evil_module.Stop")),
    ("trainer.logger", spec("evil_module.Stop")),
    ("trainer.logger", "evil_module.Stop"),
    ("trainer.plugins", [spec("evil_module.Stop")]),
    ("trainer.strategy", spec("evil_module.Stop")),
    ("trainer.strategy", "evil_module.Stop"),
    ("trainer.accelerator", "evil_module.Stop"),
    ("trainer.profiler", "evil_module.Stop"),
    ("trainer.profiler", spec("lightning.pytorch.profilers.PyTorchProfiler", schedule="evil_module.call")),
    ("trainer.profiler", spec("lightning.pytorch.profilers.PyTorchProfiler", on_trace_ready=spec("evil_module.Stop"))),
    ("model.backbone", "evil.yaml"),
    ("model.backbone", "evil_module.Data"),
    ("model.backbone", spec("evil_module.Data")),
    ("model.backbone", spec("os.system", command="touch PROOF")),
    ("model.backbone.init_args.pretrained", spec("evil_module.Data")),
    ("data", "evil.yaml"),
    ("trainer.strategy", "evil_file"),  # jsonargparse reads a file of that name in the config's own folder
    ("config", "evil.yaml"),
    ("data.dict_kwargs", {"nested": spec("evil_module.Data")}),
]


@pytest.mark.parametrize(("place", "value"), NAMES, ids=[f"{place}={value}"[:70] for place, value in NAMES])
def test_a_config_that_names_code(
    place: str, value: Any, run: Path, proof: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = yaml.safe_dump(spec("evil_module.Data"))
    for name in ("evil.yaml", "evil_file"):
        (run / name).write_text(text)
    changed(run, place, yaml.safe_load(yaml.safe_dump(value).replace("PROOF", str(proof))))
    monkeypatch.chdir(run.parent)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "--run", str(run)])
    assert not proof.exists()
    assert "evil_module" not in sys.modules
    assert stopped.value.code == 2
    assert "config.yaml" in capsys.readouterr().err
    if place.startswith(("data", "model.backbone")):  # what report and steer read of it
        with pytest.raises(UserError):
            open_run(run).datamodule.setup("test")
        assert not proof.exists()
        assert "evil_module" not in sys.modules


@pytest.mark.parametrize("command", ["report", "steer"])
def test_commands_that_open_a_run(command: str, run: Path, proof: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(run, "data", spec("os.system", command=f"touch {proof}"))
    more = {"report": [], "steer": ["--scale", "0/0=0"]}[command]
    with pytest.raises(SystemExit) as stopped:
        main([command, "--run", str(run), *more])
    assert stopped.value.code == 2
    assert not proof.exists()


def test_a_class_of_the_users_own_needs_a_word(run: Path, proof: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With it, the user's own callback is there; without it, the message says which word."""
    changed(run, "trainer.callbacks", [spec("evil_module.Stop")])
    with pytest.raises(SystemExit):
        main(["validate", "--run", str(run)])
    assert "--trust_config" in capsys.readouterr().err
    main(["validate", "--run", str(run), "--trust_config"])
    assert proof.exists()


def test_what_a_checkpoint_names(run: Path, proof: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    named = dict(content["hyper_parameters"])
    content["hyper_parameters"]["backbone"] = spec("evil_module.Data")
    torch.save(content, path)
    with pytest.raises(UserError, match=r"model\.backbone\.class_path: evil_module\.Data is not a class of"):
        CLTModule.load_from_checkpoint(path)
    assert "evil_module" not in sys.modules
    content["hyper_parameters"] = named | {"transcoder": named["transcoder"] | {"activation": spec("evil_module.Data")}}
    torch.save(content, path)
    for words in (["validate", "--run", str(run)], ["export", "--ckpt_path", str(path), "--output", str(run / "out")]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert "activation" in capsys.readouterr().err
    assert not proof.exists()
    assert "evil_module" not in sys.modules


def test_an_instantiator_of_a_checkpoint_is_not_called(run: Path, proof: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= {"_instantiator": "evil_module.call", "_class_path": "evil_module.Data"}
    torch.save(content, path)
    assert isinstance(CLTModule.load_from_checkpoint(path), CLTModule)
    assert not proof.exists()


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_in_a_checkpoint(run: Path, proof: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {}, "bomb": Bomb(proof)}, path)
    with pytest.raises(UserError, match=r"Python objects beside tensors .*system"):
        CLTModule.load_from_checkpoint(path)
    for words in (["validate", "--run", str(run)], ["export", "--ckpt_path", str(path), "--output", str(run / "out")]):
        with pytest.raises(SystemExit):
            main(words)
        assert "Traceback" not in capsys.readouterr().err
    assert not proof.exists()


def test_the_leave_to_run_commands_is_not_the_configs(
    run: Path, tmp_path: Path, proof: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"pipe:touch {proof}; cat {tmp_path / 'none.tar'}"
    arguments = {"test": [address], "val": [address], "allow_pipe": True, "batch_size": 8, "num_workers": 0}
    changed(run, "data", spec("clt_lightning.data.WebImages", **arguments, shard_counts={"test": [1], "val": [1]}))
    with pytest.raises(SystemExit):
        main(["validate", "--run", str(run)])
    assert "--data.init_args.allow_pipe=true" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--data\.init_args\.allow_pipe=true"):
        list(open_run(run).batches("test"))
    assert not proof.exists()
    # whoever runs the command may allow it
    with pytest.raises(UserError):
        list(open_run(run, allow_pipe=True).batches("test"))
    assert proof.exists()
    proof.unlink()
    with pytest.raises(SystemExit):
        main(["validate", "--run", str(run), "--data.init_args.allow_pipe=true"])
    assert proof.exists()


def test_a_file_whose_name_is_a_command(tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "pipe:touch it_ran;.tar"
    with tarfile.open(tmp_path / name, "w") as tar:
        info = tarfile.TarInfo("a.txt")
        tar.addfile(info, io.BytesIO(b""))
    monkeypatch.chdir(tmp_path)
    for pattern in ("*.tar", "./*.tar", "**/*.tar"):
        found = expand(pattern, "train")
        assert all(shard.local for shard in found.shards)
        assert [os.path.basename(shard.url) for shard in found.shards] == [name]

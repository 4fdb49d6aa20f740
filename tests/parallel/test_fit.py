"""The command line with features over two processes: the run of one, through its checkpoints and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import clt_lightning as cl
from clt_lightning.cli.main import main
from tests.runs.world import run, scalars, state, write_config

from .test_sharded import close

OPTIONS = {
    "model": {
        "schedule": {"warmup_steps": 2, "decay": "none"},
        "loss": {"cascade": {"stream": 0.1, "embedding": 0.1, "reconstruction": 0.1, "images": 2}},
    },
    "data": {"init_args": {"num_workers": 0}},
    "trainer": {"val_check_interval": 4, "gradient_clip_val": 0.05},
    "figures": {"per_layer": True},
}
TWO = ["--trainer.devices=2", "--model.parallel.feature=2"]


def fit(config: Path, version: int, steps: int, *more: str, processes: int = 1) -> Path:
    words = [f"--version={version}", f"--trainer.max_steps={steps}", "--ckpt_path=last", *more]
    if processes == 1:
        main(["fit", "--config", str(config), *words])
    else:
        done = run(config, *words, *TWO, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
    return config.parent / "runs" / "run" / f"version_{version}"


def validated(folder: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((folder / "results.json").read_text())["metrics"]["val"]["values"]
    return values


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_two_and_back(tmp_path: Path) -> None:
    config = write_config(tmp_path, **OPTIONS)
    straight = fit(config, 0, 10)
    fit(config, 1, 4)
    divided = fit(config, 1, 8, processes=2)
    # what two processes have written fits one: its checkpoint, and the transcoder for others
    between = torch.load(divided / "checkpoints" / "last.ckpt", weights_only=True)
    assert {tuple(between["state_dict"][f"transcoder.{name}"].shape) for name in ("W_enc.0", "W_enc.2")} == {(64, 32)}
    exported = cl.CrossLayerTranscoder.from_pretrained(divided / "transcoder")
    module = cl.CLTModule.load_from_checkpoint(divided / "checkpoints" / "last.ckpt").eval()
    x = module.clip.capture(torch.randn(3, 3, module.clip.image_size, module.clip.image_size)).x
    assert torch.equal(module.transcoder.encode(x).dense(), exported.encode(x).dense())

    fit(config, 1, 10)
    a, b = (state(folder / "checkpoints" / "last.ckpt") for folder in (divided, straight))
    close(a["state_dict"], b["state_dict"])
    close(a["optimizer_states"][0]["state"], b["optimizer_states"][0]["state"])
    close(a["data"], b["data"])
    logged, expected = scalars(divided), scalars(straight)
    for tag in ("train/loss", "train/l0", "val/fvu/all", "val/l0/cls", "val/dead/all/layer_01", "val/cosine/patch"):
        close([list(entry) for entry in logged[tag]], [list(entry) for entry in expected[tag]], tag)
    # a batch that two processes share counts once; the first step of a start is in no measurement of speed
    assert set(logged["train/tokens"]) <= set(expected["train/tokens"])
    assert logged["train/tokens"][-1] == expected["train/tokens"][-1]
    close(validated(divided), validated(straight))


def test_a_number_that_does_not_divide_the_processes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, **OPTIONS)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config), "--model.parallel.feature=2"])
    assert stop.value.code == 2
    assert "model.parallel.feature=2 does not divide the 1 processes" in capsys.readouterr().err

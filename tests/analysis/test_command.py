"""The command and the example, end to end on the demo's CLIP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clt_lightning.analysis import Retrieval, load_evaluation, load_features, open_run

REPOSITORY = Path(__file__).parents[2]


def python(*words: str, cwd: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_fit_then_test_then_explain(tmp_path: Path, demo_tars: Path) -> None:
    quickstart = str(REPOSITORY / "configs" / "quickstart.yaml")
    sizes = ["--data.init_args.n_train=256", "--data.init_args.n_test=75", "--data.init_args.world=5"]
    place = [f"--data.init_args.root={demo_tars}", f"--runs_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    python(
        "-m",
        "clt_lightning",
        "fit",
        "--config",
        quickstart,
        "--trainer.max_steps=6",
        "--model.schedule.warmup_steps=2",
        *sizes,
        *place,
        cwd=tmp_path,
    )
    run = tmp_path / "quickstart" / "version_0"
    before = (run / "config.yaml").read_text()

    cheap = ["--evaluate.population.images=64", "--evaluate.cascade.firsts=[0]", "--evaluate.bootstrap=50"]
    said = python("-m", "clt_lightning", "test", "--run", str(run), *cheap, cwd=tmp_path)
    assert "population check, fvu" in said
    assert (run / "config.yaml").read_text() == before  # it says how the run was trained
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    found = load_evaluation(run)
    assert found["step"] == 6
    assert found["images"] == found["labelled"] == 75
    assert found["population"]["train_images"] == 64
    content = json.loads((run / "results.json").read_text())
    assert content["metrics"]["test"]["values"]["fvu/all"] == pytest.approx(
        found["reconstruction"]["fvu"]["all"]["mean"]
    )
    replaced = [arm for arm in found["zero_shot"]["arms"] if arm["kind"] == "replaced" and arm["tokens"] == "all"]
    full = next(arm for arm in replaced if (arm["first"], arm["last"]) == (0, found["layers"] - 1))
    tag = f"zero_shot/replaced/0-{found['layers'] - 1}/all"
    assert content["metrics"]["test"]["values"][tag] == pytest.approx(full["top1"]["value"])
    assert load_features(run).info["images"] == 75
    assert Retrieval.load(run).n_layers == found["layers"]

    opened = open_run(run)
    key = load_features(run).keys[7]
    image = opened.images([key])[key]
    assert opened.pixels(image).shape == image.shape
    example = str(REPOSITORY / "examples" / "explain_one_image.py")
    shown = python(example, "--run", str(run), "--image", "7", cwd=tmp_path)
    assert "= sum of the terms" in shown
    assert "nearest by sparse code" in shown

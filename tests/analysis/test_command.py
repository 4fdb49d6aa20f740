"""The command and the example, end to end on the demo's CLIP."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from clt_lightning.analysis import Retrieval, load_evaluation, load_features, load_metrics, open_run
from clt_lightning.analysis.circuits import NodeSet
from clt_lightning.cli.main import main

REPOSITORY = Path(__file__).parents[2]


def test_fit_then_test_then_explain(
    tmp_path: Path, demo_tars: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it; put back afterwards
    quickstart = str(REPOSITORY / "configs" / "quickstart.yaml")
    sizes = ["--data.init_args.n_train=256", "--data.init_args.n_test=75", "--data.init_args.world=5"]
    place = [f"--data.init_args.root={demo_tars}", f"--runs_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    steps = ["--trainer.max_steps=6", "--model.schedule.warmup_steps=2", "--data.init_args.num_workers=0"]
    main(["fit", "--config", quickstart, *steps, *sizes, *place])
    run = tmp_path / "quickstart" / "version_0"
    before = (run / "config.yaml").read_text()

    cheap = ["--evaluate.population.images=64", "--evaluate.cascade.firsts=[0]", "--evaluate.bootstrap=50"]
    recipe = re.search(
        r"```python\n(# stream_norms\.py\n.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    assert recipe is not None
    (tmp_path / "stream_norms.py").write_text(recipe[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["--evaluate.extra+=stream_norms.StreamNorms", "--evaluate.extra.token_set=cls"]
    main(["test", "--run", str(run), *cheap, *own])
    assert (run / "config.yaml").read_text() == before  # it says how the run was trained
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    found = load_evaluation(run)
    assert found["step"] == 6
    assert found["images"] == found["labelled"] == 75
    assert found["population"]["train_images"] == 64
    assert found["extra"]["stream_norms"]["tokens"] == "cls"
    assert len(found["extra"]["stream_norms"]["stream"]) == found["layers"]
    # a number stands once; what was logged is read out of the evaluation
    assert json.loads((run / "results.json").read_text())["metrics"]["test"]["values"] == {}
    logged = load_metrics(run, "test")
    assert logged["fvu/all"] == pytest.approx(found["reconstruction"]["fvu"]["all"]["mean"])
    last = found["layers"] - 1
    names = [(arm["kind"], arm["first"], arm["last"], arm["tokens"]) for arm in found["zero_shot"]["arms"]]
    full = found["zero_shot"]["arms"][names.index(("replaced", 0, last, "all"))]
    assert logged[f"zero_shot/replaced/0-{last}/all"] == pytest.approx(full["top1"]["value"])
    assert load_features(run).info["images"] == 75
    assert Retrieval.load(run).n_layers == found["layers"]

    opened = open_run(run)
    key = load_features(run).keys[7]
    image = opened.images([key])[key]
    assert opened.pixels(image).shape == image.shape
    example = str(REPOSITORY / "examples" / "explain_one_image.py")
    monkeypatch.setattr(sys, "argv", [example, "--run", str(run), "--image", "7"])
    capsys.readouterr()
    runpy.run_path(example, run_name="__main__")
    shown = capsys.readouterr().out
    assert "= sum of the terms" in shown
    assert "nearest by sparse code" in shown

    steering = tmp_path / "steer.json"
    files = ["--output", str(steering), "--picture", str(tmp_path / "steer.png"), "--save", "two"]
    main(["steer", "--run", str(run), "--scale", "0/0=0", "--set", "3/5=4", "--image", key, *files])
    shown = capsys.readouterr().out
    assert (tmp_path / "steer.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((run / "steering" / "two.json").read_text())
    assert saved["run"] == {"title": "quickstart/version_0", "started": saved["run"]["started"], "step": 6}
    assert "3/5 = 4; 0/0 x 0 at all tokens of the original model" in shown
    assert f"two.json; `python -m clt_lightning report --run {run}` shows it" in shown
    settled = (run / "results.json").read_text()
    (run / "results.json").write_text(json.dumps(json.loads(settled) | {"evaluation": {}}))
    main(["steer", "--run", str(run), "--scale", "0/0=0", "--image", key, "--save", "three"])
    assert f"three.json; after `python -m clt_lightning test --run {run}`, `python" in capsys.readouterr().out
    (run / "results.json").write_text(settled)
    assert f"{key}: " in shown
    record = json.loads(steering.read_text())
    assert [edit["kind"] for edit in record["edits"]] == ["set", "scale"]
    assert [image["key"] for image in record["per_image"]] == [key]
    assert record["per_image"][0]["label"] == load_features(run).labels[7]
    assert saved["edits"] == record["edits"]
    assert saved["mean_change"] == record["mean_change"]
    with pytest.raises(SystemExit):
        main(["steer", "--run", str(run), "--image", key])
    assert "give at least one of --set, --scale, --add" in capsys.readouterr().err

    nodes = tmp_path / "nodes.json"
    NodeSet.features([(0, 0), (3, 5, 0)], name="two").to_json(nodes)
    main(["steer", "--run", str(run), "--nodes", str(nodes), "--scale-nodes", "0.5", "--image", key])
    assert "0/0 x 0.5; 3/5 @0 x 0.5 at all tokens" in capsys.readouterr().out

    amplified = tmp_path / "amplify.json"
    few = ["--train-images", "48", "--val-images", "40", "--images", "40", "--neighbours", "5"]
    arms = ["--arms", "vs2", "vs2_gated", "centroid"]
    main(["steer", "--run", str(run), "--amplify", "2", *few, *arms, "--layers", "2-3", "--output", str(amplified)])
    shown = capsys.readouterr().out
    assert "features of blocks 2, 3; [CLS] is moved at resid_post of block 3" in shown
    assert re.search(r"the gate \(quantile 0.99\) steers [\d.]+ % of these images, [\d.]+ % of Gaussian noise", shown)
    assert [arm["name"] for arm in json.loads(amplified.read_text())["amplify"]["arms"]] == ["none", *arms[1:]]

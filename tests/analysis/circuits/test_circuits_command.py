"""`graph` on the demo's CLIP, and validation of what it predicts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import clt_lightning as cl
from clt_lightning.analysis.circuits import validate
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.validation import COLUMNS, lines
from clt_lightning.cli.main import main
from tests.analysis import world
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory, demo_tars: Path) -> Path:
    """A run's folder with a transcoder of random weights on the demo's CLIP."""
    folder = tmp_path_factory.mktemp("runs") / "made" / "version_0"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    clt = cl.CrossLayerTranscoder(4, 96, 64, cl.TopK(3), seed=0)
    with torch.no_grad():
        for weight in clt.W_dec:
            weight.normal_(0, 0.05)
    clt.save_pretrained(folder / "transcoder")
    data = {"root": str(demo_tars), "n_train": 256, "n_test": 75, "world": 5, "num_workers": 0}
    config = {"model": {"backbone": {"pretrained": "demo"}}, "data": {"class_path": "Demo", "init_args": data}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_command(made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = cl.open_run(made_run)
    batch = next(iter(opened.batches("test", limit=3)))
    key, names = batch["key"][1], opened.datamodule.classnames
    target = f"{names[0]} - {names[9]}"
    output = tmp_path / "folder" / "graph.json"
    options = ["--run", str(made_run), "--image", key, "--target", target, "--precision", "64", "--output", str(output)]
    main(["graph", *options, "--validate", "6", "--validate-images", "2", "--node-threshold", "1"])
    shown = capsys.readouterr()
    said = shown.out + shown.err
    assert "active features" in said
    assert opened.head is not None
    value = cl.Target.parse(opened.head, names, target).value(opened.clip.encode_image(batch["image"][1]))
    shown_value = re.search(rf"{re.escape(target)}: (-?[\d.]+)", said)
    assert shown_value
    assert float(shown_value[1]) == pytest.approx(float(value), abs=2e-3)
    assert "replacement score 0." in said
    assert "everything held" in said
    graph = Graph.from_json(output)
    assert graph.about["key"] == key
    assert graph.about["node_threshold"] == 1.0
    found = json.loads(output.with_suffix(".validation.json").read_text())
    assert found["keys"][0] == key
    assert len(found["keys"]) == 2
    assert found["agreements"]["frozen"]["all"]["correlation"]["value"] == pytest.approx(1.0)
    # without an image: those of the split, each on its own class
    output = tmp_path / "all.json"
    options = ["--run", str(made_run), "--output", str(output), "--validate-target", "class"]
    main(["graph", *options, "--validate", "2", "--validate-images", "3"])
    assert "2 nodes of 3 images" in capsys.readouterr().out
    assert not output.exists()
    found = json.loads(output.with_suffix(".validation.json").read_text())
    assert found["keys"] == batch["key"]
    assert all(name.endswith(" - mean of classes") for name in found["targets"])
    # without a target: the probable classes, weighted
    main(["graph", "--run", str(made_run), "--image", key, "--summed", "--max-nodes", "20", "--show", "2"])
    said = capsys.readouterr().out
    assert "mean of classes" in said
    assert "20 feature" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "nobody"], "has no sample 'nobody'"),
        (["--image", "KEY", "--target", "red sqare"], "no class 'red sqare'.*red square"),
        (["--image", "KEY", "--max-nodes", "0"], "--max-nodes must be at least 1"),
        (["--image", "KEY", "--max-nodes", "many"], "--max-nodes: expected a whole number"),
        (["--image", "KEY", "--node-threshold", "2"], r"--node-threshold must lie in 0\.\.1"),
        (["--image", "KEY", "--validate", "1"], "--validate must be at least 2"),
        (["--image", "KEY", "--skip", "over"], "there is no 'over'"),
        (["--image", "KEY", "--targte", "x"], "did you mean --target"),
        ([], "needs --image"),
        (["--validate", "2", "--target", "red square"], "--target needs --image"),
    ],
)
def test_mistakes_are_a_few_lines(
    made_run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(iter(cl.open_run(made_run).batches("test", limit=1)))["key"][0]
    with pytest.raises(SystemExit):
        main(["graph", "--run", str(made_run), *(key if o == "KEY" else o for o in options)])
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert len(error.strip().splitlines()) <= 3


def test_validation_of_made_graphs() -> None:
    clip, clt = clip_of("plain"), clt_of(skip=True)
    images = [an_image(i) for i in range(4)]
    targets = [a_target(i) for i in range(4)]
    found = validate(clip, clt, images, targets, 10, sets=3, draws=20, dtype=torch.float64)
    again = validate(clip, clt, images, targets, 10, sets=3, draws=20, dtype=torch.float64)
    for name, column in found.table.items():
        assert len(column) == 4 * (2 * 10 + 3)
        np.testing.assert_array_equal(column, again.table[name])
    held = found.agreements["frozen"]
    for part in ("all", "top", "random", "sets"):
        assert held[part].correlation.value == pytest.approx(1)
        assert held[part].slope == pytest.approx(1)
    singles = found.table["kind"] < 2
    np.testing.assert_allclose(
        found.table["predicted_frozen"][singles], found.table["observed_frozen"][singles], atol=1e-9
    )
    # nodes of an image are different ones, half of them strong
    first = (found.table["image"] == 0) & (found.table["scale"] == 0) & singles
    places = list(zip(*(found.table[c][first].tolist() for c in ("layer", "position", "feature"))))
    assert len(set(places)) == 10
    assert found.table["kind"][first].tolist() == [0] * 5 + [1] * 5
    # away and doubled are predicted as opposites
    twice = (found.table["image"] == 0) & (found.table["scale"] == 2)
    for name in ("frozen", "tangent", "tower", "gradient"):
        column = found.table[f"predicted_{name}"]
        np.testing.assert_allclose(column[twice], -column[first], atol=1e-9)
    text = "\n".join(lines(found, 300))
    assert all(observed in text for _, observed in COLUMNS.values())
    for layer in range(world.LAYERS):
        assert f"layer {layer}" in text


def test_the_live_gradient_is_the_slope_of_small_changes() -> None:
    from clt_lightning.analysis.circuits import NodeSet, intervene, model_of_image
    from clt_lightning.analysis.circuits.validation import live_gradients

    clip, clt = clip_of("plain"), clt_of()
    model = model_of_image(clip, clt, an_image(), torch.float64, "through")
    strongest = sorted(live_gradients(model, a_target()), key=lambda e: -abs(e[3]))[:5]
    for layer, position, feature, effect in strongest:
        little = NodeSet.features([(layer, feature, position)], "scale", 1 + 1e-5)
        found = intervene(clip, clt, an_image(), little, target=a_target(), dtype=torch.float64)
        assert float(found.observed[0, 0]) * 1e5 == pytest.approx(effect, rel=1e-3)

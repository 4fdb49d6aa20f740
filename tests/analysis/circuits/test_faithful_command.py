"""`graph --curves` and `graph --evolution` on the demo's CLIP, with autoencoders and with a cross-layer transcoder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import clt_lightning as cl
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.cli.main import main


def made(folder: Path, demo_tars: Path, clt: cl.CrossLayerTranscoder) -> Path:
    """A run's folder with a transcoder of small random decoders."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in clt.W_dec:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    clt.save_pretrained(folder / "transcoder")
    data = {"root": str(demo_tars), "n_train": 256, "n_test": 75, "world": 5, "num_workers": 0}
    config = {"model": {"backbone": {"pretrained": "demo"}}, "data": {"class_path": "Demo", "init_args": data}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def residual_run(tmp_path_factory: pytest.TempPathFactory, demo_tars: Path) -> Path:
    sites = cl.Sites(read="resid_post")
    sae = cl.CrossLayerTranscoder(4, 96, 48, cl.TopK(3), "sae", seed=0, sites=sites, normalize="token")
    return made(tmp_path_factory.mktemp("runs") / "residual" / "version_0", demo_tars, sae)


def test_curves_graph_and_evolution(residual_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = next(iter(cl.open_run(residual_run).batches("test", limit=1)))["key"][0]
    output = tmp_path / "out" / "found.json"
    options = ["graph", "--run", str(residual_run), "--output", str(output), "--baseline-images", "6"]
    main([*options, "--image", key, "--curves", "3", "--evolution", "3"])
    said = capsys.readouterr().out
    assert re.search(r"\d images of test that the model gets right, of 3; baseline median, errors node", said)
    assert "by edges (the paper's rule)" in said
    assert "Moran's I" in said
    curves = json.loads(output.with_suffix(".curves.json").read_text())
    assert set(curves["arms"]) == {"edges", "nodes", "edges_plain", "nodes_plain", "neurons", "activation", "random"}
    assert curves["about"]["baseline"] == {"kind": "median", "images": 6}
    for arm in curves["arms"].values():
        assert arm["insertion"]["logit"]["normalised"][0]["value"] == 0
        assert arm["insertion"]["logit"]["normalised"][-1]["value"] == pytest.approx(1)
        assert arm["deletion"]["logit"]["normalised"][0]["value"] == pytest.approx(1)
    graph = Graph.from_json(output)
    assert graph.about["units"] == "target"
    assert graph.about["key"] == key
    evolution = json.loads(output.with_suffix(".evolution.json").read_text())
    assert [pair["edges"] is not None for pair in evolution["pairs"]] == [True] * 3
    assert json.loads((residual_run / "evolution" / "results.json").read_text()) == evolution, "kept for the report"
    assert (evolution["split"], evolution["images"], evolution["patches"]) == ("test", 3, 36)
    # the baseline is kept with the run, and made anew for another transcoder
    kept = sorted(path.name for path in (residual_run / "baseline").iterdir())
    assert kept == ["dimensions-median-6.safetensors", "features-median-6.safetensors"]
    main([*options, "--curves", "1", "--arms", "edges", "random"])
    again = capsys.readouterr()
    assert "baseline:" not in again.out + again.err
    folder = residual_run / "transcoder"
    run = cl.open_run(residual_run)
    with torch.no_grad():
        run.transcoder.b_dec.add_(0.01)
    run.transcoder.save_pretrained(folder)
    before = (residual_run / "baseline" / "features-median-6.safetensors").read_bytes()
    main([*options, "--curves", "1", "--arms", "edges", "--errors", "kept"])
    assert (residual_run / "baseline" / "features-median-6.safetensors").read_bytes() != before


def test_curves_of_a_cross_layer_transcoder(
    tmp_path: Path, demo_tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "clt" / "version_0", demo_tars, cl.CrossLayerTranscoder(4, 96, 48, cl.TopK(3), seed=0))
    main(["graph", "--run", str(run), "--curves", "2", "--baseline", "mean", "--baseline-images", "4"])
    said = capsys.readouterr().out
    assert "by influence in the image's graph" in said
    assert "baseline mean" in said
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"graph needs --image KEY \(or --validate N, --curves N, --evolution N\)"),
        (["--curves", "0"], "--curves must be at least 1"),
        (["--curves", "3", "--baseline-images", "0"], "--baseline-images must be at least 1"),
        (["--curves", "3", "--arms", "graph"], "--arms: there is no 'graph'.*edges_plain"),
        (["--curves", "3", "--baseline", "mode"], "there is no 'mode'"),
        (["--evolution", "1"], "--evolution must be at least 2"),
        (["--page"], r"graph needs --image KEY"),
        (["--page", "--curves", "3"], "--page needs --image KEY, or --evolution N"),
        (["--validate", "4", "--curves", "3"], "--validate is of transcoders in the place"),
        (["--validate", "4", "--image", "KEY", "--baseline", "zero"], "--validate is of transcoders in the place"),
    ],
)
def test_mistakes(residual_run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = next(iter(cl.open_run(residual_run).batches("test", limit=1)))["key"][0]
    with pytest.raises(SystemExit):
        main(["graph", "--run", str(residual_run), *(key if o == "KEY" else o for o in options)])
    error = capsys.readouterr().err
    assert re.search(message, " ".join(error.split()))
    assert len(error.strip().splitlines()) <= 4

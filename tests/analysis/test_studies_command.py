"""`studies` of a run: its own sets, others, what is printed and written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import clt_lightning as cl
from clt_lightning.analysis.studies import KINDS, StudyCounter
from clt_lightning.cli.main import main
from clt_lightning.transcoder import Codes


def _sets(folder: Path) -> dict[str, Any]:
    sizes = {"striped": 12, "dotted": 7}
    return {
        "class_path": "Studies",
        "init_args": {
            "batch_size": 4,
            "sets": {
                name: {
                    "class_path": "Demo",
                    "init_args": {"root": str(folder / name), "texture": name, "n_train": 4, "n_test": n, "n_val": 4},
                }
                for name, n in sizes.items()
            },
        },
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two studies, hardly trained: its decoders are the negated encoders, so that something is rebuilt."""
    folder = tmp_path_factory.mktemp("studies") / "runs" / "two" / "version_0"
    folder.mkdir(parents=True)
    clip = cl.FrozenCLIP(pretrained="demo", precision="fp32")
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 32, cl.TopK(4), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for W in clt.W_dec:
            W.copy_(0.01 * torch.randn(W.shape, generator=generator))
    clt.save_pretrained(folder / "transcoder")
    data = _sets(folder.parent)
    config = {"model": {"backbone": {"class_path": "FrozenCLIP", "init_args": {"pretrained": "demo"}}}, "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for entry in data["init_args"]["sets"].values():
        cl.data.Demo(**entry["init_args"]).prepare_data()
    return folder


def test_a_runs_own_sets(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = tmp_path / "use.npz"
    main(["studies", "--run", str(run), "--arrays", str(arrays)])
    said = capsys.readouterr().out
    assert "two/version_0, test split" in said
    found = json.loads((run / "studies" / "results.json").read_text())
    assert [entry["name"] for entry in found["sets"]] == ["striped", "dotted"]
    assert [entry["images"] for entry in found["sets"]] == [12, 7]
    assert all(len(entry["fvu"]) == len(entry["l0"]) == 4 for entry in found["sets"])
    assert all(f"{np.mean(entry['fvu']):.4f}" in said for entry in found["sets"])
    assert [sum(layer) for layer in zip(*found["kinds"].values())] == [32] * 4
    opened = cl.open_run(run)
    use = cl.analysis.study_use(opened.clip, opened.transcoder, opened.batches("test"), opened.datamodule.names)
    with np.load(arrays) as there:
        assert set(there) == set(use.arrays())
        for name, expected in use.arrays().items():
            np.testing.assert_array_equal(there[name], expected)
    assert found["sets"][0]["l0"] == pytest.approx(use.l0[0])


def test_other_sets_and_fewer_images(run: Path, tmp_path: Path) -> None:
    other = _sets(run.parent)
    other["init_args"]["sets"] = dict(reversed(other["init_args"]["sets"].items()))
    config, output = tmp_path / "other.yaml", tmp_path / "found.json"
    config.write_text(yaml.safe_dump({"data": other}, sort_keys=False))
    main(["studies", "--run", str(run), "--data", str(config), "--images", "5", "--output", str(output)])
    found = json.loads(output.read_text())
    assert [(entry["name"], entry["images"]) for entry in found["sets"]] == [("dotted", 5), ("striped", 5)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "0"], "--images must be at least 1"),
        (["--fdr", "1"], "--fdr must be between 0 and 1"),
        (["--output", "."], "--output . is a folder"),
        (["--data.init_args.root", "elsewhere"], "several sets, each with a root of its own"),
    ],
)
def test_refusals(run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["studies", "--run", str(run), *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_one_set_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "one.yaml"
    config.write_text(yaml.safe_dump({"data": _sets(run.parent)["init_args"]["sets"]["striped"]}, sort_keys=False))
    with pytest.raises(SystemExit):
        main(["studies", "--run", str(run), "--data", str(config)])
    assert f"--data {config}: its data are one set (Demo)" in capsys.readouterr().err


def test_distinctive_features_lead_by_what_the_set_explains() -> None:
    rates = torch.tensor([[0.5, 0.5], [0.6, 0.1], [0.3, 0.0], [0.1, 0.9], [0.0, 0.0], [1.0, 0.6], [0.6, 0.15]])
    counter = StudyCounter(["a", "b"], 1, 7, 2)
    for study in range(2):
        codes = (torch.arange(200)[None, :, None] < 200 * rates[:, study]).float()
        y = torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(study))
        counter.update(torch.full((200,), study), Codes.from_dense(codes), y, y)
    use = counter.result()
    found = [(entry["feature"], entry["kind"]) for entry in use.distinctive(0)]
    # the difference of rates is larger in feature 6 than in 5, which the set tells better: where it is off
    assert found == [(5, "uneven"), (2, "specific"), (1, "uneven"), (6, "uneven")]
    explained = [entry["explained"] for entry in use.distinctive(0)]
    assert explained == sorted(explained, reverse=True)
    assert [(entry["feature"], entry["kind"]) for entry in use.distinctive(1)] == [(3, "specific")]
    assert len(use.distinctive(0, top=1)) == 1
    kinds = ("shared", "uneven", "specific", "specific", "dead", "uneven", "uneven")
    assert use.kinds()[0].tolist() == [KINDS.index(k) for k in kinds]


def test_the_threshold_gives_each_set_the_common_l0() -> None:
    generator = torch.Generator().manual_seed(0)
    counter = StudyCounter(["faint", "strong"], 2, 50, 2)
    codes = [scale * torch.randn(2, 300, 50, generator=generator).relu() for scale in (0.2, 3.0)]
    codes = [torch.where(c > 0.1, c, 0.0) for c in codes]
    for study, some in enumerate(codes):
        y = torch.randn(2, 300, 2, generator=generator)
        counter.update(torch.full((300,), study), Codes.from_dense(some), y, y)
    use = counter.result()
    common = use.l0.sum() / 2  # over both layers: sets have equally many tokens
    assert use.l0[0].sum() < common < use.l0[1].sum()
    assert (codes[1] >= use.threshold[1]).sum() / 300 == pytest.approx(common, rel=2e-3)
    smallest = float(codes[0][codes[0] > 0].min())
    assert use.threshold[0] == pytest.approx(smallest, rel=1e-3)  # it has too few at any threshold
    assert use.threshold[0] <= smallest

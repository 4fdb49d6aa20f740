"""The paper's settings: found in a run's record, put beside what was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.analysis.published import all_cells, cell_of, measured
from clt_lightning.cli.main import main


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def results(clip: str = "ViT-B-32-quickgelu", data: str = "cifar100", activation: str = "TopK", **more: Any) -> Any:
    arms: list[dict[str, Any]] = [
        {"kind": "original", "first": None, "last": None, "tokens": None, "top1": interval(0.6453)}
    ]
    arms += [
        {"kind": kind, "first": first, "last": last, "tokens": tokens, "top1": interval(top1)}
        for kind, first, last, tokens, top1 in (
            ("replaced", 0, 11, "cls", 0.2),
            ("replaced", 0, 11, "all", 0.5421),
            ("replaced", 7, 11, "all", 0.63),
            ("replaced", 3, 3, "all", 0.64),
            ("true_x", 3, 11, "all", 0.62),
        )
    ]
    curve = [interval(0.6 - 0.01 * n) for n in range(13)]
    faithfulness = [
        {"layer": 11, "tokens": "all", "ranking": r, "ablation": a, "terms": 12, "drop_top": {"top1": curve}}
        | {"drop_bottom": {"top1": curve}}
        for r, a in (("image", "zero"), ("dataset", "mean"), ("dataset", "zero"))
    ]
    curve[1], curve[8] = interval(0.59), interval(0.61)
    evaluation = {
        "layers": 12,
        "reconstruction": {"r2": {"all": {"mean": 0.9134}}, "cosine": {"all": {"mean": 0.951}}},
        "zero_shot": {"arms": arms},
        "faithfulness": faithfulness,
    }
    transcoder = {"activation": {"class_path": activation}, "topology": "cross_layer", "skip": False} | more
    run = {
        "finished": "2026-01-01T00:00:00+00:00",
        "clip": {"name": clip, "pretrained": "openai"},
        "transcoder": transcoder,
        "data": {"description": {"set": data}},
    }
    return {"run": run, "evaluation": {"test": evaluation}}


def write(folder: Path, content: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))


def test_a_run_finds_its_setting() -> None:
    assert len(set(map(str, all_cells()))) == 18
    cell, note = cell_of(results("ViT-B-16-quickgelu", "coco", "clt_lightning.AbsTopK"))
    assert (str(cell), note) == ("B/16 COCO AbsTopK", "")
    cell, note = cell_of(results(skip=True))
    assert (str(cell), note) == ("B/32 CIFAR-100 TopK", "linear skip")
    odd: Any
    for odd in (results("demo-ViT-4-96", "demo"), results(data="demo"), results(activation="BatchTopK"), {}):
        assert cell_of(odd)[0] is None
    assert cell_of(results("ViT-B-32", "imagenet100", "JumpReLU"))[0] is not None


def test_what_was_measured_comes_from_the_right_arms() -> None:
    found = measured(results()["evaluation"]["test"], intervals=False)
    assert found == {
        "R2": "0.913",
        "cosine": "0.951",
        "original": "64.53",
        "0->11": "54.21",
        "7->11": "63.00",
        "drop top 1, all": "59.00",
        "keep top 4, all": "61.00",
    }
    assert measured(results()["evaluation"]["test"])["0->11"] == "54.21 (53.2..55.2)"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    write(tmp_path / "runs" / "a" / "version_0", results())
    write(tmp_path / "runs" / "b" / "version_0", results(activation="JumpReLU"))
    write(tmp_path / "runs" / "c" / "version_0", results(skip=True))
    write(tmp_path / "runs" / "demo" / "version_0", results("demo-ViT-4-96", "demo"))
    unfinished = results()
    unfinished["run"]["finished"] = None
    write(tmp_path / "runs" / "d" / "version_0", unfinished)
    untested = results(data="coco")
    del untested["evaluation"]
    write(tmp_path / "runs" / "e" / "version_0", untested)
    main(["paper-table", "--output", "paper.md"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert "left out: runs/demo/version_0 (demo-ViT-4-96 on demo is no setting of the paper)" in lines
    assert "left out: runs/e/version_0 (`test --run runs/e/version_0` first)" in lines
    assert "54.21" in rows["B/32 CIFAR-100 TopK: runs/a/version_0"]
    assert "B/32 CIFAR-100 TopK: runs/c/version_0 (linear skip)" in rows
    published = rows["B/32 CIFAR-100 TopK: published"]
    assert [published[i] for i in (4, 5, 6, 7)] == ["~.910", "~.953", "61.65", "~51.1"]
    assert "~.889" in rows["B/32 CIFAR-100 JumpReLU: published"]
    assert lines[-1] == "wrote paper.md"
    assert "16 of the 18 settings have no run here yet." in lines
    assert sum(line.startswith("B/32 CIFAR-100 TopK: published") for line in lines) == 1
    text = (tmp_path / "paper.md").read_text()
    assert "54.21 (53.2..55.2)" in text
    assert "read off the poster's plots" in text


def test_no_run_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--runs_dir", str(tmp_path)], [str(tmp_path / "nowhere")]):
        with pytest.raises(SystemExit) as stop:
            main(["paper-table", *words])
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err

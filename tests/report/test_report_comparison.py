"""Several runs: numbers side by side, matched features, and a switch between their pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clt_lightning.analysis import stability
from clt_lightning.analysis.features import load_features
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.report import Built, ReportOptions, build_comparison, draft
from clt_lightning.transcoder import CrossLayerTranscoder, TopK
from tests.report.browser import LAPTOP, PHONE, Browser
from tests.report.conftest import Made, empty_figures, read_data
from tests.report.made import MadePictures

FEATURES = 160


def transcoder(seed: int) -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(4, 24, FEATURES, TopK(4), seed=seed)
    with torch.no_grad():
        for W in clt.W_dec:
            W.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return clt


def shuffled(clt: CrossLayerTranscoder, order: torch.Tensor) -> CrossLayerTranscoder:
    """The same features in another order; the first ten are others."""
    out, other = transcoder(5), transcoder(6)
    with torch.no_grad():
        for layer in range(4):
            out.W_enc[layer].copy_(clt.W_enc[layer][order])
            out.W_dec[layer].copy_(clt.W_dec[layer][order])
            out.W_enc[layer][:10] = other.W_enc[layer][:10]
            out.W_dec[layer][:10] = other.W_dec[layer][:10]
    return out


ORDER = torch.randperm(FEATURES, generator=torch.Generator().manual_seed(3))


def copy_of(made: Made, folder: Path, clt: CrossLayerTranscoder | None, **changes: Any) -> Path:
    """A slim copy of the made run with another record, config and transcoder."""
    shutil.copytree(made.run, folder, ignore=shutil.ignore_patterns("report"))
    results = json.loads((folder / "results.json").read_text())
    slim = results["evaluation"]["test"]
    slim |= {"contributions": {}, "faithfulness": []} | {k: v for k, v in changes.items() if k in slim}
    results["run"] = results["run"] | {k: v for k, v in changes.items() if k not in slim}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(f"name: x\nmodel:\n  transcoder: {{n_features: 160, k: {len(str(folder))}}}\n")
    if clt is not None:
        clt.save_pretrained(folder / "transcoder")
    return folder


@pytest.fixture(scope="module")
def runs(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("several")
    first = transcoder(1)
    clip = {"name": "demo", "pretrained": "demo", "weights_sha256": "0" * 64}
    return [
        copy_of(made, root / "a" / "version_0", first, clip=clip),
        copy_of(made, root / "bb" / "version_3", shuffled(first, ORDER), clip=clip),
        copy_of(
            made,
            root / "c",
            transcoder(2),
            clip=clip | {"name": "ViT-B-32", "weights_sha256": "1" * 64},
            zero_shot=None,
            population=None,
        ),
    ]


@pytest.fixture(scope="module")
def compared(made: Made, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    pictures: list[MadePictures] = [made.pictures] * 3
    options = ReportOptions(images=2, mistakes=0, pages=4, queries=1, features=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "save", empty_figures)
        return build_comparison(runs, options, tmp_path_factory.mktemp("out") / "compared", pictures)


NAMES = ("0-a-version_0", "1-bb-version_3", "2-c")


def test_a_report_of_each_and_a_page_that_leads_there(compared: Built) -> None:
    folder = compared.index.parent
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == list(NAMES)
    assert f'url={NAMES[0]}/index.html#/compare"' in compared.index.read_text()
    for number, name in enumerate(NAMES):
        runs = read_data(folder / name, "runs")
        assert runs["current"] == number
        assert [run["title"] for run in runs["runs"]] == ["a/version_0", "bb/version_3", "c"]
        for run in runs["runs"]:
            assert (folder / name / run["href"]).resolve().is_file()


def test_numbers_and_configs(compared: Built, runs: list[Path]) -> None:
    data = read_data(compared.index.parent / NAMES[0], "compare")
    for entry, run in zip(data["runs"], runs):
        evaluation = json.loads((run / "results.json").read_text())["evaluation"]["test"]
        assert entry["l0"] == evaluation["reconstruction"]["l0"]["all"]["mean"]
        assert entry["fvu"]["value"] == evaluation["reconstruction"]["fvu"]["all"]["mean"]
        if not evaluation["zero_shot"]:
            assert entry["arms"] == {}
            continue
        arm = next(
            a
            for a in evaluation["zero_shot"]["arms"]
            if (a["kind"], a["first"], a["last"], a["tokens"]) == ("replaced", 0, 3, "all")
        )
        assert entry["arms"]["zero_shot"]["replaced"] == arm["top1"]
    assert [row["key"] for row in data["config"]] == ["model.transcoder.k"]  # and not `name`
    assert data["config"][0]["values"] == [str(len(str(run))) for run in runs]


def test_features_are_matched(compared: Built) -> None:
    folder = compared.index.parent
    first, apart, other = read_data(folder / NAMES[0], "compare")["matches"]
    alive = np.arange(FEATURES) % 7 != 6  # of both made runs
    kept = [f for f in range(FEATURES) if f >= 10 and alive[f] and alive[int(ORDER[f])]]
    for entry in first["layers"]:
        assert entry["b"]["kept"] == entry["a"]["kept"] == len(kept)
        assert entry["a"]["dead"] == entry["b"]["dead"] == int((~alive).sum())
        assert entry["null"]["untrained"]["both"] < entry["mmcs"]["both"]
    mine = read_data(folder / NAMES[0], "match/1_02")
    theirs = read_data(folder / NAMES[1], "match/0_02")
    for f in kept:
        assert theirs["partner"][f] == int(ORDER[f])
        assert mine["partner"][int(ORDER[f])] == f
        assert theirs["decoder"][f] == pytest.approx(1, abs=1e-3)
    for match in (apart, other):
        assert "different backbones" in match["said"]
        assert "ViT-B-32" in match["said"]
        assert match["layers"] == []
    assert not (folder / NAMES[2] / "data" / "match").exists()


def test_how_many_are_kept_by_rate(compared: Built, runs: list[Path]) -> None:
    first = read_data(compared.index.parent / NAMES[0], "compare")["matches"][0]
    frequency = load_features(runs[0]).stats["frequency"]
    assert sum(rate["features"] for rate in first["rates"]) == int((frequency > 0).sum())
    assert sum(rate["kept"] for rate in first["rates"]) == sum(layer["a"]["kept"] for layer in first["layers"])
    for rate in first["rates"]:
        inside = (frequency >= rate["low"]) & (frequency < rate["high"])
        assert rate["features"] == int(inside.sum())


def test_stability_is_what_the_command_says(compared: Built, runs: list[Path]) -> None:
    """Of the two runs on one backbone; the third cannot be compared."""
    folder = compared.index.parent
    told = read_data(folder / NAMES[0], "stability")
    assert told == read_data(folder / NAMES[2], "stability")
    assert [run["number"] for run in told["runs"]] == [0, 1]
    for run in told["runs"]:
        del run["number"]
    assert told == json.loads(json.dumps(stability.compare(runs[:2]).to_json()))
    (pair,) = told["pairs"]
    kept = sum(layer["a"]["kept"] for layer in pair["layers"])
    alive = sum(FEATURES - layer["a"]["dead"] for layer in pair["layers"])
    assert pair["kept"] == pytest.approx(kept / alive)


def test_the_pages_of_several_runs(compared: Built, browser: Browser) -> None:
    folder = compared.index.parent
    browser.call("Page.navigate", url=compared.index.resolve().as_uri())
    browser.wait("document.getElementById('main')?.dataset.ready === 'compare'")
    for screen in (LAPTOP, PHONE):
        browser.screen(*screen)
        for pair, words in ((0, "are kept in"), (1, "different backbones")):
            browser.open(folder / NAMES[0] / "index.html", f"compare?pair={pair}", "compare")
            text = browser.js("document.body.innerText")
            assert words in text
            assert "undefined" not in text
            assert "NaN" not in text
            assert browser.js("document.documentElement.scrollWidth") <= screen[0]
        browser.open(folder / NAMES[0] / "index.html", "stability", "stability")
        text = browser.js("document.body.innerText")
        for words in ("a/version_0 · bb/version_3", "By how often they fire", "as a group", "Chance: untrained"):
            assert words in text
        assert "undefined" not in text
        assert "NaN" not in text
        assert browser.js("document.documentElement.scrollWidth") <= screen[0]
    browser.screen(*LAPTOP)

    # the switch leads to the same page, and from a feature to the one that is the same
    browser.open(folder / NAMES[0] / "index.html", "features?layer=2", "features")
    browser.js("runs.value = 1; runs.dispatchEvent(new Event('change'))")
    browser.wait("document.querySelector('.brand b')?.textContent === 'bb/version_3'")
    browser.wait("document.getElementById('main')?.dataset.ready === 'features'")
    feature = next(f for f in range(10, FEATURES) if f % 7 != 6 and int(ORDER[f]) % 7 != 6)
    browser.open(folder / NAMES[1] / "index.html", f"feature/2/{feature}", "feature")
    browser.wait("document.querySelector('.partners')")
    assert f"it is L2 · {int(ORDER[feature])}" in browser.js("document.querySelector('.partners').textContent")
    browser.js("runs.value = 0; runs.dispatchEvent(new Event('change'))")
    browser.wait("document.querySelector('.brand b')?.textContent === 'a/version_0'")
    browser.wait("document.getElementById('main')?.dataset.ready === 'feature'")
    assert browser.js("location.hash") == f"#/feature/2/{int(ORDER[feature])}"
    assert browser.errors() == []


def test_a_report_of_one_run_has_no_switch(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "stability", "stability")
    assert "--run ANOTHER" in browser.js("document.body.innerText")
    browser.open(made.built.index, "compare", "compare")
    assert "--run ANOTHER" in browser.js("document.body.innerText")
    assert browser.js("document.getElementById('runs')") is None
    assert browser.js("document.querySelector('#nav [data-page=compare]')") is None


def test_what_cannot_be_compared(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="is named twice"):
        build_comparison([runs[0], runs[1], runs[0] / ".." / "version_0"], ReportOptions(pictures=False))
    with pytest.raises(UserError, match="two runs or more"):
        build_comparison(runs[:1], ReportOptions(pictures=False))
    with pytest.raises(SystemExit):
        main(["report", "--run", str(runs[0]), "--run", str(runs[0]), "--no_pictures"])
    assert "is named twice" in capsys.readouterr().err


def test_the_command_and_its_place(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--no_pictures", "--features", "1", "--queries", "0"]
    shutil.rmtree(runs[2] / "transcoder")
    results = json.loads((runs[2] / "results.json").read_text())
    results["run"]["clip"] = json.loads((runs[0] / "results.json").read_text())["run"]["clip"]
    (runs[2] / "results.json").write_text(json.dumps(results))
    main(["report", "--run", str(runs[0]), "--run", str(runs[2]), *words])
    assert f"open {runs[0] / 'comparison' / 'index.html'}" in capsys.readouterr().out
    said = read_data(runs[0] / "comparison" / NAMES[0], "compare")["matches"][0]["said"]
    assert said == "c has no transcoder/ folder: its weights are not there to compare."
    assert (runs[0] / "comparison" / "1-c" / "index.html").is_file()

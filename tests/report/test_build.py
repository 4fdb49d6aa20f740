"""Reports of runs that lack parts, and folders that are in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clt_lightning.analysis.features import load_features
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.report import ReportOptions, build_report
from clt_lightning.report.record import record_sections
from tests.report.conftest import Made, read_data
from tests.report.made import RECORD


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A copy of the run without evaluation figures, which take time."""
    copy = tmp_path / "run"
    shutil.copytree(made.run, copy, ignore=shutil.ignore_patterns("report"))
    results = json.loads((copy / "results.json").read_text())
    slim = results["evaluation"]["test"]
    slim |= {"zero_shot": None, "contributions": {}, "faithfulness": [], "population": None}
    (copy / "results.json").write_text(json.dumps(results))
    return copy


SMALL = ReportOptions(images=2, queries=2, features=3)


def test_a_run_with_features_alone(run: Path, made: Made) -> None:
    (run / "results.json").write_text(json.dumps({"schema": 1, "run": RECORD}))
    shutil.rmtree(run / "retrieval")
    built = build_report(run, SMALL, pictures=made.pictures)
    report = read_data(run / "report", "report")
    assert report["evaluation"] is None
    assert any("not evaluated" in note for note in built.notes)
    assert any("retrieval" in note for note in built.notes)
    assert read_data(run / "report", "retrieval") is None
    cards = read_data(run / "report", "cards/00_0000")["cards"]
    assert sum(card is not None for card in cards) <= 3


def test_a_run_with_an_evaluation_alone(run: Path) -> None:
    shutil.rmtree(run / "retrieval")
    shutil.rmtree(run / "features")
    build_report(run, SMALL)  # needs neither data nor model
    assert read_data(run / "report", "features") is None
    assert read_data(run / "report", "images") is None


def test_without_pictures_neither_data_nor_model_are_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", "--run", str(run), "--no_pictures", "--features", "2", "--queries", "1"])
    assert "index.html" in capsys.readouterr().out
    assert not (run / "report" / "thumbs").exists()
    assert any("--no_pictures" in note for note in read_data(run / "report", "report")["notes"])


def test_images_that_left_the_data_are_named(run: Path, made: Made) -> None:
    class Fewer:
        mean, std, study = made.pictures.mean, made.pictures.std, made.pictures.study
        circuits = made.pictures.circuits

        def read(self, wanted):  # type: ignore[no-untyped-def]
            yield from list(made.pictures.read(wanted))[2:]

    built = build_report(run, SMALL, pictures=Fewer())
    assert any(note.startswith("2 images are no longer in the data") for note in built.notes)


def test_an_older_report_is_replaced_and_nothing_else(run: Path, made: Made, tmp_path: Path) -> None:
    output = tmp_path / "out"
    build_report(run, SMALL, output, made.pictures)
    (output / "stale.txt").write_text("old")
    build_report(run, SMALL, output, made.pictures)
    assert not (output / "stale.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no report"):
        build_report(run, SMALL, tmp_path / "mine", made.pictures)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_a_report_that_fails_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    class Broken:
        mean = std = (0.5, 0.5, 0.5)

        def read(self, wanted):  # type: ignore[no-untyped-def]
            raise UserError("the disk is gone")

        def study(self, images, labels, full):  # type: ignore[no-untyped-def]
            raise AssertionError

        def circuits(self, image, key, label):  # type: ignore[no-untyped-def]
            raise AssertionError

    with pytest.raises(UserError, match="the disk is gone"):
        build_report(run, SMALL, tmp_path / "out", Broken())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_keys": ("nowhere/1",)}, "--image 'nowhere/1'"),
        ({"query_keys": ("nowhere/2",)}, "--query 'nowhere/2'"),
    ],
)
def test_keys_that_no_image_has(run: Path, made: Made, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_report(run, ReportOptions(features=0, images=0, queries=0, **options), pictures=made.pictures)


def test_images_asked_for_by_key_come_first(run: Path, made: Made) -> None:
    keys = ("00001/00000123", "00000/00000007")
    build_report(run, ReportOptions(features=0, images=2, queries=0, image_keys=keys), pictures=made.pictures)
    names = read_data(run / "report", "sprites")["keys"]
    assert [names[n] for n in read_data(run / "report", "images")["full"]][:2] == list(keys)


def test_at_most_so_many_images_have_a_page(run: Path, made: Made) -> None:
    options = ReportOptions(features=1, images=3, queries=1, pages=200)
    build_report(run, options, pictures=made.pictures)
    pages, sprites = read_data(run / "report", "images"), read_data(run / "report", "sprites")
    assert (len(pages["image"]), len(pages["full"]), pages["without"]) == (200, 3, 240 - 200)
    assert set(pages["full"]) <= set(pages["image"])
    assert [n for n, there in enumerate(sprites["page"]) if there == "1"] == pages["image"]
    # mistakes and those that pages show come before the others
    shown = {image for q in read_data(run / "report", "retrieval") for layer in q["layers"] for image, _ in layer}
    assert shown <= set(pages["image"])
    files = {path.stem for path in (run / "report" / "data" / "images").iterdir()}
    assert files == {f"{n:05d}" for n in pages["image"]}
    with pytest.raises(UserError, match="--pages must be 0 or more"):
        ReportOptions(pages=-1)


def test_the_first_mistakes_are_studied_in_full(run: Path, made: Made) -> None:
    features = load_features(run)
    keys, labels = np.asarray(features.keys), features.labels
    predicted = labels.copy()
    wrong = [3, 50, 111, 200]
    predicted[wrong] = (labels[wrong] + 1) % 12
    (run / "evaluation").mkdir()
    order = np.argsort(keys)[::-1]
    np.savez(run / "evaluation" / "test.npz", keys=keys[order], labels=labels[order], predicted=predicted[None, order])
    options = ReportOptions(features=0, images=0, queries=0, mistakes=3, pages=0)
    build_report(run, options, pictures=made.pictures)
    assert read_data(run / "report", "images")["full"] == wrong[:3]


def test_mistakes_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such folder"):
        build_report(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no results\.json"):
        build_report(tmp_path / "empty")
    with pytest.raises(UserError, match="--neighbours must be 1 or more"):
        ReportOptions(neighbours=0)
    images = json.loads((run / "retrieval" / "images.json").read_text())
    images["keys"][0] = "other"
    (run / "retrieval" / "images.json").write_text(json.dumps(images))
    with pytest.raises(UserError, match="different images"):
        build_report(run)
    with pytest.raises(SystemExit) as end:
        main(["report", "--run", str(tmp_path / "nothing")])
    assert end.value.code == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_record_is_shown_whole() -> None:
    sections = dict(record_sections({**RECORD, "extra": {"a": [1, 2], "none": None}}))
    assert ("command", RECORD["command"]) in sections["Run"]
    assert ("git.dirty", "False") in sections["Run"]
    assert ("torch", "2.15.0+cpu") in sections["Versions"]
    assert sections["More"] == [("extra.a", "1, 2")]

"""The recipe of CONTRIBUTING.md: an analysis and its page, added from outside the package."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from clt_lightning.analysis import EvaluateOptions, FeatureOptions, evaluate
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.cli.config_cli import config_keys
from clt_lightning.cli.saved import complaints
from clt_lightning.core.errors import UserError
from clt_lightning.report import ReportOptions, build_report
from clt_lightning.report.page import Page
from clt_lightning.report.pages import PAGES, all_pages, load_page
from tests.analysis.world import CLASSES, LAYERS, POSITIONS, TEMPLATES, Made, make_clip, make_clt, register
from tests.report.made import make_run

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(first_line: str) -> str:
    """The block of CONTRIBUTING that begins so."""
    (found,) = [text for text in re.findall(r"```\w+\n(.*?)```", TEXT, re.DOTALL) if text.startswith(first_line)]
    return str(found)


FILES = {"stream_norms.py": block("# stream_norms.py"), "stream_norms.js": block("// stream_norms.js")}


@pytest.fixture(scope="module", autouse=True)
def _tiny_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("open_clip_recipes"))


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return make_clip()


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe's files, where Python finds them."""
    folder = tmp_path / "code"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "stream_norms", raising=False)
    return folder


def test_it_is_short() -> None:
    assert len(FILES) <= 3
    assert sum(len(text.splitlines()) for text in FILES.values()) <= 150


@pytest.mark.parametrize("batch_size", [5, 26])
def test_its_numbers_by_hand(clip: FrozenCLIP, batch_size: int) -> None:
    from stream_norms import StreamNorms

    clt, data = make_clt(), Made(batch_size=batch_size)
    options = EvaluateOptions(features=FeatureOptions(enabled=False), bootstrap=5)
    found = evaluate(
        clip, clt, data.test_dataloader(), CLASSES, TEMPLATES, options=options, progress=False, extra=[StreamNorms()]
    )[0].to_json()["extra"]["stream_norms"]
    images = data.everything()[0]
    stream = clip.read(images, "resid_pre")["resid_pre"].double().unflatten(1, (-1, POSITIONS))[:, :, 1:]
    acts = clip.capture(images)
    error = (acts.y - clt(acts.x).y_hat.detach()).double().unflatten(1, (-1, POSITIONS))[:, :, 1:]
    for name, part in (("stream", stream), ("error", error)):
        torch.testing.assert_close(torch.tensor(found[name]).double(), part.norm(dim=-1).mean((1, 2)))
    assert found["tokens"] == "patch"
    assert len(found["stream"]) == LAYERS


def test_a_run_of_somebody_else_loads_no_analysis_unasked() -> None:
    entry = {"class_path": "stream_norms.StreamNorms", "init_args": {"token_set": "cls"}}
    ((_, told),) = complaints({"evaluate": {"extra": [entry]}}, config_keys(), Path())
    assert "stream_norms.StreamNorms is not a class of clt_lightning" in told
    assert "stream_norms" not in sys.modules


@pytest.mark.slow
def test_its_page_stands_in_the_report(tmp_path: Path, outside: Path) -> None:
    page = load_page("stream_norms.PAGE")
    run, pictures = make_run(tmp_path)
    results = json.loads((run / "results.json").read_text())
    norms = {"tokens": "patch", "stream": [3.0, 4.0, 5.0, 6.0], "error": [0.5, 0.25, 0.5, 0.125]}
    results["evaluation"]["test"]["extra"] = {"stream_norms": norms}
    (run / "results.json").write_text(json.dumps(results))
    built = build_report(run, ReportOptions(images=0, queries=0, own_pages=(page,)), pictures=pictures)
    folder = built.index.parent
    assert '<a href="#/stream_norms" data-page="stream_norms">Stream norms</a>' in built.index.read_text()
    script = (folder / "assets/js/pages/stream_norms.js").read_text()
    assert script == (outside / "stream_norms.js").read_text()
    assert (folder / "tables/stream_norms.csv").read_text().splitlines()[1] == "0,3.0,0.5"


def test_pages_that_cannot_be(tmp_path: Path) -> None:
    script = tmp_path / "odd.js"
    script.write_text("CLT.pages.other = 1")
    for page, told in (
        (Page("summary", "", "", "", script=script), "there is a page 'summary' already"),
        (Page("odd", "", "", ""), "names no script"),
        (Page("odd", "", "", "", script=tmp_path / "none.js"), "which is not there"),
        (Page("odd", "", "", "", script=script), r"does not set CLT\.pages\.odd"),
    ):
        with pytest.raises(UserError, match=told):
            all_pages([page])
    assert all_pages() == PAGES
    for name, told in (
        ("PAGE", "there is no such name"),
        ("nowhere.PAGE", "nowhere cannot be imported"),
        ("stream_norms.NONE", "there is no such name"),
        ("stream_norms.StreamNorms", "it is a type"),
    ):
        with pytest.raises(UserError, match=told):
            load_page(name)
    with pytest.raises(UserError, match="small letters"):
        Page("Odd-1", "", "", "")

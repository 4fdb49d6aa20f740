"""The page of several data sets: what the command has measured, and a place in the navigation only where it has."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.analysis.studies import StudyCounter
from clt_lightning.core.files import write_json
from clt_lightning.report import ReportOptions, build_report
from clt_lightning.transcoder import Codes
from tests.report.browser import PHONE, Browser
from tests.report.conftest import Made, read_data
from tests.report.made import make_run


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two sets of 200 images; feature n of 14 is on in 5 n % of the first's and in the rest of 70 % of the other's."""
    run, pictures = make_run(tmp_path_factory.mktemp("studies"), 2, 14, 60)
    counter = StudyCounter(["first", "second <b>"], 2, 14, 4)
    for study in range(2):
        rates = torch.arange(14) * 0.05
        codes = (torch.arange(200)[None, :, None] < 200 * (rates if study == 0 else 0.7 - rates)).float()
        y = torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(study))
        counter.update(torch.full((200,), study), Codes.from_dense(codes.expand(2, -1, -1)), y, 0.5 * y)
    write_json(run / "studies" / "results.json", {"run": "runs/made", "split": "test", **counter.result().to_json()})
    return Made(run, pictures, build_report(run, ReportOptions(images=0, queries=1), pictures=pictures))


def test_the_page_has_the_commands_numbers(compared: Made, made: Made) -> None:
    data = compared.data("studies")
    assert [entry["name"] for entry in data["sets"]] == ["first", "second <b>"]
    assert data["sets"][0]["distinctive"][0]["feature"] == 13
    assert data["sets"][1]["distinctive"][0]["feature"] == 0
    assert read_data(made.folder, "studies") is None


def test_the_page_in_a_browser(compared: Made, made: Made, browser: Browser) -> None:
    browser.screen(*PHONE)
    browser.open(compared.built.index, "studies", "studies")
    browser.wait("document.querySelector('#nav [data-page=studies]') !== null")
    said = browser.js("document.getElementById('main').innerText")
    assert "second <b>" in said
    assert "More often in first" in said
    assert "NaN" not in said
    assert "undefined" not in said
    assert browser.js("document.documentElement.scrollWidth") <= PHONE[0]
    assert browser.js("[...document.querySelectorAll('#main td, #main th a')].length") > 20
    assert browser.js("document.querySelector('#main th a').getAttribute('href')").startswith("#/feature/")
    browser.open(made.built.index, "studies", "studies")
    assert "python -m clt_lightning studies --run" in browser.js("document.getElementById('main').innerText")
    assert browser.js("document.querySelector('#nav [data-page=studies]')") is None
    assert browser.errors() == []

"""The page of saved edits with the model behind it: values that are moved, and edits that are saved later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from clt_lightning.analysis.steering import Edit, steer
from clt_lightning.cli.serve import _steering
from clt_lightning.report.saved_edits import Flips, save_edit, steering_record
from clt_lightning.report.source import read_source
from tests.report.browser import NAMES, PHONE, Browser, find
from tests.server.conftest import STORED, Served

FEW = [Edit(1, 3, "set", 4.0), Edit(3, 8, "scale", 0.0, 0)]
MANY = [Edit(layer, feature, "scale", 0.0) for layer in (0, 3) for feature in range(40)]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if find() is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with Browser(tmp_path / "profile") as tab:
        yield tab


def save(served: Served, name: str, edits: list[Edit]) -> None:
    run, flips = served.session.run, Flips(served.session.run.pixels)
    batches = list(run.batches("test", limit=STORED))
    found = steer(run.clip, run.transcoder, batches, edits, served.session.head, served.session.classnames, see=flips)
    save_edit(served.run, steering_record(served.run, found, edits, flips, name=name))


def test_values_are_moved_and_later_edits_are_there(served: Served, browser: Browser) -> None:
    source = read_source(served.run, "test")
    made = served.server.made
    made["data/steering.js"] = lambda: _steering(made, source)
    browser.screen(*PHONE)
    browser.open(served.server.url, "steering", "steering")
    assert "steer --run" in browser.js("document.getElementById('main').innerText")
    save(served, "few", FEW)
    save(served, "many", MANY)
    browser.open(served.server.url, "steering/few", "steering")
    sliders = "[...document.querySelectorAll('.slider.fixed input')].map(i => [Number(i.min), Number(i.value)])"
    browser.wait("document.querySelectorAll('.slider.fixed').length === 2")
    assert browser.js(sliders) == [[0, 4], [-1, 0]]
    assert browser.js("document.documentElement.scrollWidth") <= PHONE[0]
    saved = json.loads((served.run / "steering" / "few.json").read_text())

    def counted(edits: list[Edit]) -> int:
        lines = list(served.session.flips(edits, "all", "original"))
        return sum(len(line["flips"]) for line in lines)

    assert counted(FEW) == saved["changed"]
    said = f"/{STORED} of {STORED} images, {{}} of another/.test(document.body.innerText)"
    browser.wait(said.format(saved["changed"]))
    browser.js(
        "(() => { const i = document.querySelector('.slider.fixed input');"
        " i.value = 0.5; i.dispatchEvent(new Event('input')); })()"
    )
    moved = float(browser.js("Number(document.querySelector('.slider.fixed input').value)"))
    assert moved == pytest.approx(0.5)
    browser.wait(said.format(counted([Edit(1, 3, "set", moved), FEW[1]])))
    browser.goto("steering/many")
    browser.wait("document.querySelectorAll('.slider.fixed').length === 1")
    assert "80 features" in browser.js("document.querySelector('.slider.fixed').innerText")
    assert browser.errors() == []

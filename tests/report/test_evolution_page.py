"""The page of features over the layers: what is packed, what is drawn, and how one feature is followed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from clt_lightning.core.files import read_json
from clt_lightning.report import ReportOptions
from clt_lightning.report.draft import Draft
from clt_lightning.report.evolution import PLACE
from clt_lightning.report.existing import add_evolution, read_data
from clt_lightning.report.folder import ReportFolder
from clt_lightning.report.packing import unpack_column
from clt_lightning.report.pages import evolution
from clt_lightning.report.source import read_source
from tests.report.browser import Browser
from tests.report.conftest import Made


def text(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")
    return found


def test_the_pages_data_are_the_commands(made: Made) -> None:
    content = read_json(made.run / PLACE)
    head = made.data("evolution")
    assert [layer["alive"] for layer in head["layers"]] == [layer["alive"] for layer in content["layers"]]
    assert head["pairs"][1]["weights"]["chance"] == content["pairs"][1]["weights"]["chance"]
    assert head["chains"]["edges"][0]["features"] == [0, 0, 0, 0]
    columns = made.data("evolution/02")
    wanted = np.array(content["layers"][2]["moran"], float)
    np.testing.assert_allclose(unpack_column(columns["moran"]), wanted, rtol=1e-6)
    found = content["pairs"][1]["edges"]
    assert unpack_column(columns["edges"]["feature"]).reshape(-1, columns["edges"]["kept"]).tolist() == found["feature"]
    assert "edges" not in made.data("evolution/00")
    rows = (made.folder / "tables" / "evolution.csv").read_text().splitlines()
    assert rows[0] == "block,number,q10,q25,q50,q75,q90"
    assert any(row.startswith("3,edges_share,") for row in rows)
    assert any(row.startswith("1,profiles_by_chance,0.25,") for row in rows)


def test_numbers_of_other_weights_are_not_shown(made: Made, tmp_path: Path) -> None:
    source = read_source(made.run, "test")
    content = read_json(made.run / PLACE)
    (tmp_path / PLACE).parent.mkdir()
    for step, shown in ((2000, True), (1500, False), (None, True)):
        (tmp_path / PLACE).write_text(json.dumps(content | {"step": step}))
        found = dataclasses.replace(source, run=tmp_path, notes=[])
        evolution.write(Draft(ReportFolder(tmp_path), found, ReportOptions()))
        assert (read_data(tmp_path, "evolution") is not None) is shown
        assert len(found.notes) == (not shown)
    assert add_evolution(tmp_path, content) == "#/evolution"
    assert read_data(tmp_path, "evolution/03")["edges"]["kept"] == 3
    (tmp_path / PLACE).unlink()
    evolution.write(Draft(ReportFolder(tmp_path), found, ReportOptions()))
    assert read_data(tmp_path, "evolution") is None


def test_chains_and_one_feature_followed(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "evolution?layer=2&feature=3&by=weights", "evolution")
    assert browser.js("document.querySelector('#nav [data-page=evolution]').textContent") == "Over the layers"
    browser.wait("document.querySelectorAll('.linkstrip').length > 3")
    chains = browser.js(
        "[...document.querySelectorAll('.linkstrip')]"
        ".map(s => [...s.querySelectorAll('.linked a')].map(a => a.textContent))"
    )
    assert chains[0] == ["L0 · 0", "L1 · 0", "L2 · 0", "L3 · 0"]
    # back to the first layer and on to the last, from the middle
    assert chains[-1] == ["L0 · 3", "L1 · 3", "L2 · 3", "L3 · 3"]
    assert text(browser, ".linked.picked a") == ["L2 · 3"]
    values = read_json(made.run / PLACE)["pairs"]
    steps = browser.js(
        "[...[...document.querySelectorAll('.linkstrip')].at(-1).querySelectorAll('.step b')].map(e => e.textContent)"
    )
    assert steps == [f"{pair['weights']['value'][3][0]:.2f}" for pair in values]
    # a click on a picture follows that feature, and the address keeps it
    browser.js("[...document.querySelectorAll('.linkstrip')].at(-1).querySelector('button').click()")
    browser.wait("document.querySelector('.linked.picked a').textContent === 'L0 · 3'")
    assert "layer=0&order=near&feature=3" in browser.js("location.hash")
    assert "nothing before" in text(browser, ".links")[0]
    # what is like none before comes first
    browser.open(made.built.index, "evolution?layer=1&order=new&by=profiles", "evolution")
    first = text(browser, "main table.plain tbody th")
    assert set(first[:9]) == {f"L1 · {f}" for f in range(10, 20) if f % 7 != 6}
    assert not any(int(name.split(" ")[-1]) % 7 == 6 for name in first), "features that never fire are left out"
    browser.js("[...document.querySelectorAll('.seg button')].find(b => b.textContent === 'by edges').click()")
    browser.wait("location.hash.includes('by=edges')")
    assert browser.errors() == []


@pytest.mark.parametrize(
    "query", ["layer=9&feature=x&by=constructor&order=toString", "feature=99999", "layer=0&feature=6"]
)
def test_addresses_that_name_nothing(made: Made, browser: Browser, query: str) -> None:
    browser.open(made.built.index, f"evolution?{query}", "evolution")
    assert text(browser, "h1") == ["Over the layers"]
    assert "NaN" not in browser.js("document.body.innerText")
    assert browser.errors() == []

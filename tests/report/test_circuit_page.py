"""The page of a circuit in a real browser: what is shown, pinned, grouped, noted, and kept in the address."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from clt_lightning.analysis.circuits import NodeSet
from clt_lightning.report.circuit import circuit_of
from clt_lightning.report.existing import add_circuit
from clt_lightning.report.packing import unpack_column, unpack_maps
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of
from tests.analysis.circuits.residual_world import made_baseline, sae_of
from tests.report.browser import PHONE, Browser
from tests.report.conftest import Made


def first(made: Made) -> tuple[int, dict[str, Any]]:
    number = made.data("circuits")["images"][0]["image"]
    return number, made.data(f"circuits/{number:05d}")


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")
    return found


def click(browser: Browser, node: str) -> None:
    browser.js(f"document.querySelector('.circuit [data-id=\"{node}\"]').click()")


def button(text: str, within: str = "main") -> str:
    return f"[...document.querySelectorAll('{within} button')].find(b => b.textContent === {json.dumps(text)})"


def test_nodes_edges_and_the_slider(made: Made, browser: Browser) -> None:
    number, data = first(made)
    circuit = data["circuits"][0]
    browser.open(made.built.index, f"circuit/{number}?pruningThreshold=1&edges=3000", "circuit")
    ids = browser.js("[...document.querySelectorAll('.circuit .cnode')].map(e => e.dataset.id)")
    assert len(set(ids)) == len(ids) == len(unpack_column(circuit["nodes"]["kind"]))
    weights = unpack_column(circuit["edges"]["weight"])
    assert browser.js("document.querySelectorAll('.edges path').length") == len(weights)
    assert browser.js("document.querySelectorAll('.edges path.minus').length") == int((weights < 0).sum())
    # features 0/3 at position 2 and 1/3 at position 2 stand above each other, and the answer above all
    box = '(id) => document.querySelector(`.circuit [data-id="${id}"]`).getBoundingClientRect().toJSON()'
    low, high, answer = (browser.js(f"({box})('{name}')") for name in ("0_3_2", "1_3_2", "5_0_0"))
    assert answer["y"] < high["y"] < low["y"]
    bias = browser.js(f"({box})('bias_head_out')")
    assert bias["y"] == answer["y"]
    assert bias["right"] <= answer["x"], "the read-out's bias stands beside the answer, not on it"
    assert abs(low["x"] - high["x"]) < 200
    for kind in ("feature", "error", "skip", "input", "bias", "rest", "target"):
        assert browser.js(f"document.querySelectorAll('.circuit .cnode.{kind}').length") > 0, kind
    # less influence: fewer nodes, and none that leads nowhere
    browser.js(
        "(() => { const s = document.querySelector('.share input'); s.value = 0.4;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    fewer = browser.js("document.querySelectorAll('.circuit .cnode').length")
    assert 0 < fewer < len(ids)
    assert "pruningThreshold=0.4" in browser.js("location.hash")
    assert browser.errors() == []


def test_a_node_shows_its_map_its_card_and_its_edges(made: Made, browser: Browser) -> None:
    number, data = first(made)
    browser.open(made.built.index, f"circuit/{number}?pruningThreshold=1", "circuit")
    drawn = "document.querySelector('.overlay').toDataURL()"
    blank = browser.js(drawn)
    browser.js("document.querySelector('.circuit [data-id=\"1_3_2\"]').focus()")
    assert browser.js(drawn) != blank
    assert browser.js("document.querySelectorAll('.edges path.on').length") > 0
    browser.press("ArrowDown")
    assert browser.js("document.activeElement.dataset.id") not in (None, "1_3_2")
    click(browser, "1_3_2")
    assert browser.js("document.querySelector('.cardlink').getAttribute('href')") == "#/feature/1/3"
    browser.wait("document.querySelectorAll('.nodecard .thumb').length > 1")
    # what it reads: every edge into it, the largest first
    circuit = data["circuits"][0]
    nodes = {name: unpack_column(text) for name, text in circuit["nodes"].items()}
    at = int(((nodes["kind"] == 0) & (nodes["layer"] == 1) & (nodes["feature"] == 3)).nonzero()[0][0])
    mine = unpack_column(circuit["edges"]["weight"])[unpack_column(circuit["edges"]["target"]) == at]
    reads = browser.js("document.querySelectorAll('.nodecard > div:nth-of-type(2) tbody tr').length")
    assert reads == len(mine) > 3
    shown = [float(t.replace("−", "-").replace("+", "")) for t in texts(browser, ".nodecard > div:nth-of-type(2) td")]
    assert abs(shown[0] - mine[abs(mine).argmax()]) < 0.006 * abs(shown[0])
    assert browser.errors() == []


def test_the_address_holds_pins_groups_and_notes(made: Made, browser: Browser) -> None:
    number, _ = first(made)
    browser.open(made.built.index, f"circuit/{number}?target=1&edges=3000&pruningThreshold=1", "circuit")
    ids = browser.js("[...document.querySelectorAll('.circuit .cnode.feature')].map(e => e.dataset.id)")
    error = browser.js("document.querySelector('.circuit .cnode.error').dataset.id")
    for name in (ids[0], ids[1], error):
        click(browser, name)
        browser.js(f"{button('pin')}.click()")
    browser.js("document.querySelectorAll('.pins input[type=checkbox]')[2].click()")
    browser.js("document.querySelector('.pinscard form input').value = 'wheels & \"more\"'")
    browser.js("document.querySelector('.pinscard form').requestSubmit()")
    click(browser, ids[0])
    browser.js(
        "(() => { const a = document.querySelector('.nodecard textarea'); a.value = 'a rim? 50 %';"
        " a.dispatchEvent(new Event('change')); })()"
    )
    said = "[document.querySelector('h1').textContent, document.querySelector('.pinscard').innerText,"
    said += " [...document.querySelectorAll('.pins .group > input')].map(e => e.value),"
    said += " document.querySelector('.nodecard h2').textContent, document.querySelector('.nodecard textarea').value,"
    said += " document.querySelectorAll('.cnode.pinned').length, document.querySelectorAll('.cnode').length]"
    before = browser.js(said)
    assert before[2] == ['wheels & "more"']
    layer, feature, _ = ids[0].split("_")
    assert before[3].startswith(f"L{layer} · {feature} at ")
    assert before[4:6] == ["a rim? 50 %", 3]
    route = browser.js("location.hash").removeprefix("#/")
    browser.open(made.built.index, route, "circuit")
    assert browser.js(said) == before
    # what an address names that is not there, or is no JSON, is left out
    broken = "pinnedIds=9_9_9,0_5_4&supernodes=[[1,2],%22x%22&notes=7&clickedId=no&edges=77&factor=9&pruningThreshold=x"
    browser.open(made.built.index, f"circuit/{number}?{broken}", "circuit")
    assert browser.js("document.querySelectorAll('.cnode.pinned').length") == 1
    for words in ("supernodes=5", "supernodes=null&notes=null", "supernodes=[[[]],{},null,[]]"):
        browser.open(made.built.index, f"circuit/{number}?{words}", "circuit")
        assert browser.js("document.querySelector('h1').textContent").startswith("Circuit: ")
    assert browser.errors() == []


def test_pinned_nodes_are_downloaded_as_a_node_set(made: Made, browser: Browser) -> None:
    number, _ = first(made)
    browser.open(made.built.index, f"circuit/{number}?pinnedIds=0_5_4,error_1_3,E_2_2&factor=2", "circuit")
    browser.js("URL.createObjectURL = (blob) => { window.saved = blob; return 'data:,'; }")
    browser.js(f"{button('Download as a node set')}.click()")
    found = NodeSet.from_json(json.loads(browser.js("window.saved.text()")))
    found.check(4, 160, 17)
    assert [(e.kind, e.layer, e.feature, e.position, e.action, e.value) for e in found] == [
        ("feature", 0, 5, 4, "scale", 2.0),
        ("error", 1, None, 3, "scale", 2.0),
    ]
    # without the model the page says how to ask it
    assert "serve --run" in browser.js("document.querySelector('.pinscard').innerText")
    assert browser.js(f"{button('Ask the model')} === undefined")
    assert browser.errors() == []


def test_a_circuit_of_the_residual_stream(made: Made, tmp_path: Path, browser: Browser) -> None:
    """Nodes without a place stand where their code is largest, light their patches, and promise no prediction."""
    clip, sae = clip_of("plain"), sae_of()
    run: Any = SimpleNamespace(clip=clip, transcoder=sae)
    circuit = circuit_of(run, an_image(), a_target(), made_baseline(clip, sae))
    number, data = first(made)
    folder = Path(shutil.copytree(made.folder, tmp_path / "report"))
    add_circuit(folder, number, {**data, "grid": [3, 3], "circuits": [circuit]})
    place = len(data["circuits"])
    browser.open(folder / "index.html", f"circuit/{number}?target={place}&pruningThreshold=1&edges=3000", "circuit")
    assert "Each edge is what one node adds to the answer by way of another" in browser.js("document.body.innerText")
    layer, feature, peaks = (unpack_column(circuit["maps"][name]) for name in ("layer", "feature", "peaks"))
    maps = unpack_maps(circuit["maps"]["maps"], peaks, 10)
    level = int(np.bincount(layer).argmax())
    row = int(np.argmax((maps > 0).sum(1) * (layer == level)))
    name = f"{level}_{feature[row]}_all"
    left = "document.querySelector('.circuit [data-id=\"{}\"]').getBoundingClientRect().x"
    ordered = sorted(
        (int(maps[n].argmax()), browser.js(left.format(f"{level}_{feature[n]}_all")))
        for n in np.flatnonzero(layer == level)
    )
    assert len({place for place, _ in ordered}) > 2
    for (one, x), (other, further) in itertools.pairwise(ordered):
        assert one == other or x < further
    drawn = "document.querySelector('.overlay').toDataURL()"
    blank = browser.js(drawn)
    browser.js(f"document.querySelector('.circuit [data-id=\"{name}\"]').focus()")
    assert browser.js(drawn) != blank
    click(browser, name)
    browser.js(f"{button('pin')}.click()")
    said = browser.js("document.querySelector('.pinscard').innerText")
    assert "Nodes of a summed graph have no place" in said
    assert "Predicted" not in said
    assert browser.js("document.querySelector('.pinscard table.what')") is None
    assert browser.errors() == []


def test_a_phone_scrolls_the_drawing_alone(made: Made, browser: Browser) -> None:
    browser.screen(*PHONE)
    number, _ = first(made)
    browser.open(made.built.index, f"circuit/{number}?pinnedIds=0_5_4&clickedId=1_3_2&pruningThreshold=1", "circuit")
    assert browser.js("document.documentElement.scrollWidth") <= PHONE[0]
    assert browser.js("document.querySelector('.circuit').scrollWidth > document.querySelector('.circuit').clientWidth")
    assert browser.errors() == []

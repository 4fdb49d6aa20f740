"""The explorer of features in a real browser: search, presets, order, a box in the scatter, the gallery."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clt_lightning.analysis.features import load_features
from clt_lightning.report.catalogue import columns
from tests.report.browser import Browser
from tests.report.conftest import Made
from tests.report.made import CLASSES, WORDS

ROWS = "[...document.querySelectorAll('.vrow .id')].map(r => r.textContent)"
TILES = "[...document.querySelectorAll('.tile-feature b')].map(r => r.textContent)"
ORDER = "[...CLT.order]"
STATUS = "document.querySelector('[role=status]').textContent"
Columns = dict[str, np.ndarray]


def name(i: int, size: int = 160) -> str:
    return "L{} · {}".format(*divmod(int(i), size))


def press(browser: Browser, text: str) -> None:
    browser.js(f"[...document.querySelectorAll('.seg button')].find(b => b.textContent === {text!r}).click()")


@pytest.fixture
def explorer(made: Made, browser: Browser) -> Browser:
    browser.screen(1440, 900)
    browser.open(made.built.index, "features", "features")
    browser.wait("document.querySelector('.vrow')")
    return browser


@pytest.fixture
def wanted(made: Made) -> Columns:
    """All columns, `(L * F,)`."""
    features = load_features(made.run)
    found = [columns(features, layer) for layer in range(features.info["layers"])]
    return {key: np.concatenate([part[key] for part in found]) for key in found[0]}


def test_it_opens_with_the_clearest_features(explorer: Browser, wanted: Columns) -> None:
    clear = np.flatnonzero(wanted["images"] >= 20)
    order = clear[np.argsort(-wanted["monosemanticity"][clear], kind="stable")]
    assert explorer.js(ORDER) == order.tolist()
    assert explorer.js(ROWS)[:5] == explorer.js(TILES)[:5] == [name(i) for i in order[:5]]
    assert explorer.js("location.hash") == "#/features"
    explorer.wait("document.querySelectorAll('.tile-feature')[0].querySelectorAll('.thumb:not(.loading)').length === 4")
    tile = explorer.js("document.querySelector('.tile-feature').textContent")
    assert f"{wanted['effect'][order[0]]:+.2g}".replace("-", "−") in tile
    assert explorer.errors() == []


PRESETS: list[tuple[str, Callable[[Columns], np.ndarray], str]] = [
    ("Large effect", lambda c: c["strength"] > 0, "strength"),
    ("Writes far", lambda c: (c["images"] >= 20) & (c["reach"] >= 1), "reach"),
    ("[CLS]", lambda c: c["cls_share"] > 0.5, "image_frequency"),
    ("Dense", lambda c: c["frequency"] > 0.1, "frequency"),
    ("Rare", lambda c: (c["frequency"] > 0) & (c["images"] < 20), "images"),
    ("Does other than it says", lambda c: c["conflict"] > 0, "strength"),
    ("All", lambda c: c["frequency"] > 0, "frequency"),
]


def test_presets(explorer: Browser, wanted: Columns) -> None:
    for preset, keep, key in PRESETS:
        press(explorer, preset)
        kept = np.flatnonzero(keep(wanted))
        assert len(kept) > 3
        order = kept[np.argsort(-wanted[key][kept].astype(np.float64), kind="stable")]
        assert explorer.js(ORDER) == order.tolist(), preset
        assert explorer.js(STATUS).startswith(f"{len(kept)} of 640")


NUMBERS = {
    **{key: [335] for key in ("2:15", "2/15", "L2F15", "l2 · 15", "layer 2 feature 15", "layer 2, f15")},
    **{key: [15, 175, 335, 495] for key in ("feature 15", "#15", "15")},
    **{key: [] for key in ("4/1", "feature 160", "nothing like this")},  # there is no layer 4
}


def test_numbers_are_found_in_every_form(explorer: Browser) -> None:
    for text, rows in NUMBERS.items():
        # whatever the preset keeps: 15 is neither dense nor rare
        explorer.js(f"search.value = {text!r}; search.dispatchEvent(new Event('input'))")
        explorer.wait(f"new URLSearchParams(location.hash.split('?')[1]).get('text') === {text!r}")
        assert sorted(explorer.js(ORDER)) == rows, text
        assert explorer.js(STATUS).startswith(f"{len(rows)} of 640")


def test_words_are_found_in_names_of_classes_and_in_words(made: Made, explorer: Browser, wanted: Columns) -> None:
    press(explorer, "All")
    features = load_features(made.run)
    nearest = features.stats["nearest_class"][..., 0].ravel()
    searches: list[tuple[str, Callable[[str], bool]]] = [
        ("red cross", lambda name: "red" in name and "cross" in name),
        ("cross RED", lambda name: "red" in name and "cross" in name),
        ("sky", lambda name: "sky" in name),
    ]
    for text, hit in searches:
        explorer.js(f"search.value = {text!r}; search.dispatchEvent(new Event('input'))")
        explorer.wait("!document.querySelector('[role=status]').textContent.startsWith('552')")
        explorer.wait(f"location.hash.includes('{text.split()[0]}')")
        classes = [i for i, n in enumerate(CLASSES) if hit(n)]
        words = [i for i, n in enumerate(WORDS) if hit(n)]
        fits = (
            np.isin(wanted["class_index"], classes) | np.isin(nearest, classes) | np.isin(wanted["nearest_word"], words)
        )
        fits |= (wanted["name_kind"] == 1) & np.isin(wanted["lift_class"], classes)
        assert sorted(explorer.js(ORDER)) == np.flatnonzero(fits & (wanted["frequency"] > 0)).tolist()
    explorer.js("search.value = 'L1 red'; search.dispatchEvent(new Event('input'))")
    explorer.wait("location.hash.includes('L1')")
    assert {i // 160 for i in explorer.js(ORDER)} == {1}


def test_a_heading_sorts_and_missing_comes_last(explorer: Browser, wanted: Columns) -> None:
    explorer.js("document.querySelector('input[type=checkbox]').click()")  # dead ones, too
    press(explorer, "All")
    for down in (True, False):
        explorer.js("document.querySelector('[data-key=monosemanticity]').click()")
        score = wanted["monosemanticity"].astype(np.float64)
        keys = np.where(np.isnan(score), np.inf, -score if down else score)
        assert explorer.js(ORDER) == np.argsort(keys, kind="stable").tolist()
    assert explorer.js("document.querySelector('[aria-sort=ascending]').textContent") == "MS"
    explorer.js("document.querySelector('[data-key=name]').click()")
    names = explorer.js("[...document.querySelectorAll('.vrow .name .cut')].map(r => r.textContent)")
    assert names == sorted(names)


def test_a_box_in_the_scatter_filters(explorer: Browser, wanted: Columns) -> None:
    press(explorer, "All")
    box = explorer.js("document.querySelector('.scatter').getBoundingClientRect().toJSON()")
    corners = [(box["x"] + 120, box["y"] + 40), (box["x"] + 330, box["y"] + 150)]
    explorer.call(
        "Input.dispatchMouseEvent", type="mousePressed", x=corners[0][0], y=corners[0][1], button="left", clickCount=1
    )
    for x, y in corners:
        explorer.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
    explorer.call(
        "Input.dispatchMouseEvent", type="mouseReleased", x=corners[1][0], y=corners[1][1], button="left", clickCount=1
    )
    x0, x1, y0, y1 = (
        float(v) for v in explorer.js("new URLSearchParams(location.hash.split('?')[1]).get('box')").split(",")
    )
    inside = (wanted["frequency"] >= x0 * 0.999) & (wanted["frequency"] <= x1 * 1.001)
    inside &= (wanted["monosemanticity"] >= y0 - 1e-3) & (wanted["monosemanticity"] <= y1 + 1e-3)
    found = explorer.js(ORDER)
    assert 5 < len(found) < 552
    assert set(found) <= set(np.flatnonzero(inside).tolist())
    assert len(found) >= inside.sum() - 3  # the address keeps four digits
    # the same in numbers, by keyboard
    explorer.js(
        "(() => { const inputs = document.querySelectorAll('.range input');"
        " const put = (n, v) => { inputs[n].value = v;"
        " inputs[n].dispatchEvent(new Event('change')); }; put(0, '0.01'); put(1, ''); put(2, '0.5'); put(3, ''); })()"
    )
    kept = np.flatnonzero((wanted["frequency"] >= 0.01) & (wanted["monosemanticity"] >= 0.5))
    assert sorted(explorer.js(ORDER)) == kept.tolist()
    explorer.js("[...document.querySelectorAll('button')].find(b => b.textContent === 'clear box').click()")
    assert len(explorer.js(ORDER)) == 552


def test_axes_are_chosen_and_kept_in_the_address(made: Made, explorer: Browser) -> None:
    explorer.js(
        "(() => { const s = [...document.querySelectorAll('label')].find(l => l.textContent.startsWith('Across'))"
        ".querySelector('select'); s.value = 'cls_share'; s.dispatchEvent(new Event('change')); })()"
    )
    assert "x=cls_share" in explorer.js("location.hash")
    before = explorer.picture(".scatter")
    explorer.open(made.built.index, "features?x=cls_share", "features")
    explorer.wait("document.querySelector('.vrow')")
    again = explorer.picture(".scatter")
    assert np.abs(np.asarray(before, float) - np.asarray(again, float)).mean() < 1
    explorer.open(made.built.index, "features?x=strength&y=written", "features")
    explorer.wait("document.querySelector('.vrow')")
    other = explorer.picture(".scatter")
    assert np.abs(np.asarray(before, float) - np.asarray(other, float)).mean() > 1
    assert explorer.errors() == []


def test_hovering_paints_nothing_but_the_layer_above(explorer: Browser) -> None:
    explorer.js(
        "window.painted = []; for (const name of ['putImageData', 'fillRect', 'fillText', 'arc']) {"
        " const old = CanvasRenderingContext2D.prototype[name];"
        " CanvasRenderingContext2D.prototype[name] = function (...a) {"
        " painted.push(`${[...document.querySelectorAll('.scatter canvas')].indexOf(this.canvas)} ${name}`);"
        " return old.apply(this, a); }; }"
    )
    box = explorer.js("document.querySelector('.scatter').getBoundingClientRect().toJSON()")
    for step in range(60):
        at = {"x": box["x"] + 70 + 8 * step, "y": box["y"] + 60 + 2 * step}
        explorer.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
    painted = set(explorer.js("painted"))
    assert painted == {"1 arc"}
    assert explorer.js("document.querySelector('.scatter .tip').textContent").startswith("L")

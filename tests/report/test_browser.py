"""The pages in a real browser, opened from the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from clt_lightning.analysis.features import load_features
from clt_lightning.analysis.results import load_evaluation
from clt_lightning.report.packing import RESOLUTION
from clt_lightning.report.pages import PAGES
from tests.report.browser import LAPTOP, PHONE, Browser
from tests.report.conftest import Made

ADDRESSES = [(address, page.name) for page in PAGES for address in page.addresses]


#: What the select for the layer says
LAYER = (
    "[...document.querySelectorAll('label')].find(l => l.textContent.startsWith('Layer')).querySelector('select').value"
)


@pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_every_page_opens_without_errors_and_fits_the_screen(
    made: Made, browser: Browser, screen: tuple[int, int]
) -> None:
    for dark in (False, True):
        browser.screen(screen[0], screen[1], dark=dark)
        browser.open(made.built.index)
        for route, page in ADDRESSES:
            browser.goto(route)
            assert browser.js("document.getElementById('main').dataset.ready") == page
            assert browser.js("document.querySelectorAll('h1').length") == 1, route
            assert browser.js("document.documentElement.scrollWidth") <= screen[0], f"{route} is wider than the screen"
            assert "undefined" not in browser.js("document.body.innerText"), route
            assert "NaN" not in browser.js("document.body.innerText"), route
    assert browser.errors() == []
    assert {address.split(":")[0] for address in browser.requests()} <= {"file", "data", "about"}


def test_links_lead_to_cards_and_the_address_keeps_the_choice(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "features?layer=2&sort=monosemanticity", "features")
    assert browser.js(LAYER) == "2"
    assert all(
        t.startswith("L2") for t in browser.js("[...document.querySelectorAll('.vrow .id')].map(r => r.textContent)")
    )
    second = browser.js("document.querySelectorAll('.vrow')[1].querySelector('.id').textContent")
    browser.click(".vrow .id a")
    browser.wait("document.getElementById('main').dataset.ready === 'feature'")
    # the next one is the next one of the list that the reader came from, by key, too
    browser.press("ArrowRight")
    browser.wait(f"document.querySelector('h1').textContent === 'Layer 2 · feature {second.split(' ')[-1]}'")
    browser.js("setTimeout(() => history.go(-2))")
    browser.wait("document.querySelector('h1').textContent === 'Features' && document.querySelector('.vrow')")
    assert browser.js(LAYER) == "2"
    assert browser.errors() == []


def test_a_card_draws_the_codes_of_the_encoder(made: Made, browser: Browser) -> None:
    features = load_features(made.run)
    browser.open(made.built.index, "feature/1/3", "feature")
    maps = browser.js(
        "CLT.load('cards/01_0000').then(c => { const k = c.cards[3], u = CLT.unpackMaps(c.maps, 17);"
        " return k.top.map(t => [...u(t[2], k.peak)]); })"
    )
    wanted = features.layers[1]["top_map"][3]
    np.testing.assert_allclose(maps, wanted, atol=2 * RESOLUTION * np.abs(wanted).max() * 1.5)
    # in the picture: the strongest patch is drawn over, and not with "image"
    # and in the picture the active patches are drawn over, no others (a canvas with files on it cannot be read back)
    browser.wait("document.querySelector('.shot .thumb:not(.loading)')")
    with_squares = browser.picture(".shot canvas").resize((128, 128))
    browser.js("[...document.querySelectorAll('.seg button')].find(b => b.textContent === 'image').click()")
    browser.wait("document.querySelector('.shot .thumb:not(.loading)')")
    plain = browser.picture(".shot canvas").resize((128, 128))
    difference = np.abs(np.asarray(with_squares, float) - np.asarray(plain, float)).max(-1)
    middles = difference.reshape(4, 32, 4, 32)[:, 6:-6, :, 6:-6].max((1, 3)).ravel()
    np.testing.assert_array_equal(middles > 4, wanted[0, 1:] > 0)


def test_heat_maps_show_the_evaluations_numbers(made: Made, browser: Browser) -> None:
    scores = load_evaluation(made.run)["contributions"]["all"]
    titles = "[...document.querySelector('table.heat').rows].slice(1).map(r => [...r.cells].slice(1).map(c => c.title))"
    browser.open(made.built.index, "contributions?tokens=all&part=features", "contributions")
    shown = browser.js(titles)
    assert len(shown) == 4
    for source, row in enumerate(shown):
        for target, title in enumerate(row):
            wanted = "" if target < source else f"layer {source} → {target}: {scores['uncentred'][source][target]:.4f}"
            assert title == wanted
    browser.open(made.built.index, "contributions?tokens=all", "contributions")
    shown = browser.js(titles)
    assert len(shown) == 5  # no row of a skip that is not there
    assert shown[-1] == [f"decoder bias → {target}: 0.1000" for target in range(4)]
    assert shown[0][2] == f"layer 0 → 2: {scores['whole_uncentred'][0][2]:.4f}"
    assert browser.js("[...document.querySelectorAll('.column-sums')].map(e => e.textContent)") == [
        "Columns sum to 1.000.",
        "Columns sum to 1.000.",
    ]


def test_intervals_hold_the_value_that_is_printed(made: Made, browser: Browser) -> None:
    """Rounded outward: 97.94 between 97.90 and 97.96 reads 97.9, which must not lie outside its interval."""
    browser.open(made.built.index, "faithfulness", "faithfulness")
    cases = [
        (0.9794, 0.97951, 0.9799),
        (0.62549, 0.62544, 0.62551),
        (1.0, 1.0, 1.0),
        (0.5, 0.4996, 0.5),
        (0, 0, 0.0007),
    ]
    for value, low, high in cases:
        text = browser.js(f"CLT.intervalCell({{value: {value}, low: {low}, high: {high}}}).t.textContent")
        shown, ends = text.split(" % ")
        a, b = (float(end) for end in ends.split("–"))
        assert a <= min(100 * low, float(shown)) + 1e-9
        assert b >= max(100 * high, float(shown)) - 1e-9
        assert b - a <= 100 * (high - low) + 0.2 + 1e-9
    assert browser.js("CLT.rangeOf(0.01234, 0.0987, 3)") == "0.0123–0.0987"
    assert browser.js("CLT.rangeOf(0.012341, 0.09871, 3)") == "0.0123–0.0988"
    text = browser.js("document.body.innerText")
    assert "skip and bias only 31.0 %" in text
    assert "2 of 4:" in text
    assert "4 of 4" not in text


def test_kl_is_drawn_on_a_logarithmic_axis(made: Made, browser: Browser) -> None:
    for route in ("cascade?metric=kl&tokens=all", "faithfulness?metric=kl"):
        browser.open(made.built.index, route, route.split("?")[0])
        browser.wait("document.querySelector('svg.chart .gridline')")
        marks = browser.js(
            "[...document.querySelector('svg.chart').querySelectorAll('.gridline + text')]"
            ".map(t => [Number(t.textContent), Number(t.getAttribute('y'))])"
        )
        assert len(marks) >= 3
        (a, ya), (b, yb), (c, yc) = marks[0], marks[1], marks[-1]
        assert (yb - ya) / np.log(b / a) == pytest.approx((yc - ya) / np.log(c / a), rel=0.05)
    browser.open(made.built.index, "cascade?tokens=patch", "cascade")
    text = browser.js("document.body.innerText")
    assert text.count("random features") >= 2
    assert "48" in text  # images behind a control on fewer of them


def test_light_and_dark(made: Made, browser: Browser) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    browser.screen(*LAPTOP, dark=False)
    browser.open(made.built.index)
    light = browser.js(background)
    browser.screen(*LAPTOP, dark=True)
    dark = browser.js(background)
    assert light != dark
    browser.js("document.getElementById('theme').click()")
    assert browser.js(background) == light
    browser.open(made.built.index)
    assert browser.js(background) == light  # the reader's choice is kept
    browser.js("localStorage.clear()")


def test_a_damaged_folder_is_named_on_the_page(made: Made, tmp_path: Path, browser: Browser) -> None:
    index = shutil.copytree(made.folder, tmp_path / "copy") / "index.html"
    (index.parent / "data" / "cards" / "01_0000.js").unlink()
    browser.open(index, "feature/1/3", "feature")
    assert "data/cards/01_0000.js cannot be read" in browser.js("document.body.innerText")
    browser.open(index, "nonsense", "nonsense")
    assert "No such page" in browser.js("document.body.innerText")


def test_attention_replaced_as_well_stands_on_the_page_of_the_cascade(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "cascade", "cascade")
    told = browser.js("document.getElementById('main').innerText")
    for text in ("Attention replaced as well", "every MLP and every attention", "Units of attention by layer"):
        assert text in told
    figures = "[...document.querySelectorAll('figure, .card')]"
    rows = browser.js(
        f"[...{figures}.find(f => f.innerText.includes('Attention replaced as well')).querySelectorAll('tbody tr')]"
        ".map(row => row.innerText.split('\\t').map(text => text.trim()))"
    )
    entry = load_evaluation(made.run)["zero_shot"]["arms"]
    wanted = {arm["kind"]: arm["drop"]["value"] for arm in entry if arm["kind"] == "with_attention"}
    (both,) = [row for row in rows if row[0] == "every MLP and every attention"]
    assert both[2].startswith(f"{100 * wanted['with_attention']:.1f}")

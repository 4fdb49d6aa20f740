"""The frame of the pages: navigation, addresses, the way back, paper, fingers, keyboards and screen readers."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clt_lightning.report.pages import PAGES
from tests.report.browser import LAPTOP, Browser
from tests.report.conftest import Made

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
Screen = tuple[int, int, float, bool]
DESK: Screen = (1440, 900, 1.0, False)
TABLET: Screen = (1024, 768, 1.0, False)
PHONE: Screen = (390, 844, 2.0, True)
ADDRESSES = [(address, page.name) for page in PAGES for address in page.addresses]
# the made run has features over the layers and saved edits
SHOWN = ("evolution", "steering")
LISTED = [page.name for page in PAGES if page.under is None and (not page.optional or page.name in SHOWN)]
#: Addresses that lead nowhere, or say what cannot be
MALFORMED = (
    *(
        "feature/3/%",
        "feature/%E0%A4%A/1",
        "feature",
        "feature/1",
        "feature/-1/0",
        "feature/1.5/0",
        "feature/99/0",
        "feature/0/999",
    ),
    *("nonsense", "constructor", "__proto__", "/", "image/999", "image/x", "image/__proto__", "query/1e1", "query/-1"),
    *(
        "features?layer=9&sort=constructor&x=__proto__&preset=none&box=1,2",
        "features?text=%E0%A4%A&layer=%",
        "features?box=a,b,c,d",
    ),
    *("reconstruction?metric=toString", "cascade?task=none&metric=x&tokens=y", "contributions?tokens=x&cls=99"),
    *("faithfulness?n=99", "faithfulness?n=__proto__", "faithfulness?n=-1"),
)


def test_malformed_addresses_are_answered_in_words(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "features/%", "features")  # as the first address, too
    titles = [browser.goto(address) for address in MALFORMED]
    assert browser.errors() == []
    assert "This page cannot be shown" not in titles
    found = dict(zip(MALFORMED, titles))
    assert {found[a] for a in ("nonsense", "constructor", "__proto__")} == {"No such page"}
    assert {found[a] for a in ("feature/3/%", "feature", "feature/-1/0", "image/999", "query/-1")} == {"Nothing here"}
    assert found["features?layer=9&sort=constructor&x=__proto__&preset=none&box=1,2"] == "Features"


@pytest.mark.parametrize(
    "screen", [DESK, TABLET, (800, 900, 1.0, False), PHONE], ids=["desk", "tablet", "narrow", "phone"]
)
def test_every_page_can_be_reached_from_the_navigation(made: Made, browser: Browser, screen: Screen) -> None:
    browser.screen(*screen)
    browser.open(made.built.index)
    if screen is PHONE:
        assert browser.js("getComputedStyle(document.getElementById('nav')).display") == "none"
        browser.click("#menu")
        assert browser.js("document.getElementById('menu').getAttribute('aria-expanded')") == "true"
    boxes = browser.js("[...document.querySelectorAll('#nav a')].map(a => a.getBoundingClientRect().toJSON())")
    assert len(boxes) == len(LISTED)
    for box in boxes:
        assert box["width"] > 0
        assert box["left"] >= 0
        assert box["right"] <= screen[0]
        if screen is PHONE:
            assert box["height"] >= 44  # a finger's width
    # nothing lies over the last one
    middle = boxes[-1]["x"] + boxes[-1]["width"] / 2, boxes[-1]["y"] + boxes[-1]["height"] / 2
    assert browser.js("document.elementFromPoint({}, {}).closest('a').dataset.page".format(*middle)) == LISTED[-1]
    browser.js("document.querySelector('#nav a:last-child').click()")
    browser.wait(f"document.getElementById('main').dataset.ready === '{LISTED[-1]}'")
    assert browser.js("document.getElementById('menu').getAttribute('aria-expanded')") == "false"


def test_the_way_back_leads_to_where_one_was(made: Made, browser: Browser) -> None:
    browser.screen(*LAPTOP)
    browser.open(made.built.index, "features?preset=all", "features")
    browser.wait("document.querySelector('.vrow')")
    browser.js("window.scrollTo(0, 260); document.querySelector('.vtable').scrollTop = 5000;")
    browser.wait("document.querySelector('.vtable').scrollTop === 5000 && window.scrollY === 260")
    browser.js("document.querySelector('.gallery').scrollTop = 1400")
    browser.wait("[...document.querySelectorAll('.vrow')].some(r => r.getBoundingClientRect().top > 600)")
    tops = "document.querySelector('.vtable').scrollTop, document.querySelector('.gallery').scrollTop"
    place = f"[Math.round(window.scrollY), {tops}]"
    wanted = browser.js(place)
    link = browser.js(
        "[...document.querySelectorAll('.vrow .id a')]"
        ".find(a => a.getBoundingClientRect().top > 560).getAttribute('href')"
    )
    browser.js(f"document.querySelector('.vrow a[href=\"{link}\"]').click()")
    browser.wait("document.getElementById('main').dataset.ready === 'feature'")
    assert browser.js("window.scrollY") == 0  # a new page begins at its top
    browser.js("setTimeout(() => history.back())")
    browser.wait("document.getElementById('main').dataset.ready === 'features' && document.querySelector('.vrow')")
    browser.wait(f"JSON.stringify({place}) === {str(wanted).replace(' ', '')!r}")
    browser.wait(f"document.activeElement.getAttribute('href') === {link!r}")
    assert browser.errors() == []


def test_pages_print_in_light_colours_with_all_pictures(made: Made, browser: Browser) -> None:
    browser.screen(*LAPTOP, dark=True)
    browser.open(made.built.index, "feature/1/3", "feature")
    # thumbnails far below the screen, too
    browser.wait("!document.querySelector('main .thumb.loading')")
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    try:
        assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        ink = browser.js("getComputedStyle(document.body).color")
        assert max(int(v) for v in ink[4:-1].split(",")) < 80
        for selector in (".scale i", ".thumb", "rect"):
            assert browser.js(f"getComputedStyle(document.querySelector('{selector}')).printColorAdjust") == "exact"
        assert browser.js("getComputedStyle(document.querySelector('.top')).display") == "none"
        browser.open(made.built.index, "features", "features")
        browser.wait("document.querySelector('.vrow')")
        scatter = np.asarray(browser.picture(".scatter"), float)
        assert scatter.mean() > 200  # drawn anew for white paper
        pages = base64.b64decode(browser.call("Page.printToPDF", printBackground=False)["data"])
        assert pages.startswith(b"%PDF")
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])


def test_a_finger_reads_what_a_mouse_does(made: Made, browser: Browser) -> None:
    browser.screen(*PHONE)
    browser.open(made.built.index, "reconstruction", "reconstruction")
    browser.wait("document.querySelector('.chartbox svg')")
    tap = (
        "(() => {{ const box = document.querySelector('{0}'); box.scrollIntoView({{block: 'center'}});"
        " const r = box.getBoundingClientRect();"
        " const middle = {{clientX: r.left + r.width / 2, clientY: r.top + r.height / 2}};"
        " const finger = {{pointerType: 'touch', bubbles: true, ...middle}};"
        " box.dispatchEvent(new PointerEvent('pointerdown', finger)); }})()"
    )
    browser.js(tap.format(".chartbox svg"))
    assert not browser.js("document.querySelector('.chartbox .tip').hidden")
    browser.open(made.built.index, "feature/1/3", "feature")
    browser.js("document.querySelector('.enlarge').click()")
    browser.wait("document.querySelector('dialog canvas')")
    browser.js(tap.format("dialog canvas"))
    assert browser.js("document.querySelector('dialog [role=status]').textContent").startswith("row ")
    browser.js("document.querySelector('dialog').close()")


def test_downloads_follow_the_metric_that_is_shown(made: Made, browser: Browser) -> None:
    for page, metrics in (("reconstruction", ("fvu", "l0", "cosine")), ("cascade", ("top1", "kl", "drop"))):
        for metric in metrics:
            browser.open(made.built.index, f"{page}?metric={metric}", page)
            links = browser.js("[...document.querySelectorAll('.downloads a')].map(a => a.getAttribute('href'))")
            drawn = [link for link in links if link.endswith((".svg", ".png"))]
            assert len(drawn) == (2 if page == "reconstruction" else 4)
            assert all(metric in link for link in drawn), (metric, links)
            assert all((made.folder / link).is_file() for link in links)


def test_cells_of_heat_maps_can_be_read(made: Made, browser: Browser) -> None:
    contrast = (
        "(() => { const lum = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => { x /= 255;"
        " return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });"
        " return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };"
        " return Math.min(...[...document.querySelectorAll('table.heat tbody td:not(.void)')].map((td) => {"
        " const s = getComputedStyle(td), a = lum(s.color), b = lum(s.backgroundColor);"
        " return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })); })()"
    )
    for dark in (False, True):
        browser.screen(*LAPTOP, dark=dark)
        for address, page in (
            ("contributions", "contributions"),
            ("reconstruction?metric=dead", "reconstruction"),
            ("", "summary"),
        ):
            browser.open(made.built.index, address, page)
            assert browser.js(contrast) >= 4.5
    # and after the theme was switched by hand
    browser.js("document.getElementById('theme').click()")
    assert browser.js(contrast) >= 4.5
    browser.js("localStorage.clear()")


def test_no_table_is_wider_than_its_place_on_a_desk(made: Made, browser: Browser) -> None:
    browser.screen(*DESK)
    browser.open(made.built.index)
    for address, _ in ADDRESSES:
        browser.goto(address)
        wide = browser.js(
            "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth + 1).length"
        )
        assert wide == 0, address


def test_what_scrolls_can_be_scrolled_by_keyboard(made: Made, browser: Browser) -> None:
    browser.screen(*PHONE)
    seen = 0
    for address, page in (("cascade", "cascade"), ("faithfulness", "faithfulness"), ("", "summary")):
        browser.open(made.built.index, address, page)
        browser.wait(
            "[...document.querySelectorAll('.scroll')]"
            ".every(b => (b.scrollWidth > b.clientWidth + 1) === b.hasAttribute('tabindex'))"
        )
        seen += browser.js("document.querySelectorAll('.scroll[tabindex][aria-label]').length")
    assert seen >= 2


# -- axe-core ----------------------------------------------------------------------------------------------------------
def check(browser: Browser, address: str) -> list[Any]:
    """Serious findings of axe-core on a page, and headings out of order."""
    browser.goto(address)
    if not browser.js("Boolean(window.axe)"):
        browser.js(f"{AXE.read_text(encoding='utf-8')};0")
    browser.js("for (const d of document.querySelectorAll('main details')) d.open = true")
    browser.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")
    result: list[Any] = browser.js(
        "axe.run(document, {resultTypes: ['violations'], preload: false}).then((r) => r.violations"
        ".filter((v) => ['serious', 'critical'].includes(v.impact) || v.id === 'heading-order')"
        ".map((v) => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary.slice(0, 300)]))"
    )
    return result


def need_axe() -> None:
    if not AXE.is_file():
        if os.environ.get("CI"):
            pytest.fail("axe-core is missing: npm ci")
        pytest.skip("axe-core is missing: npm ci")


def test_axe_finds_nothing_serious(made: Made, browser: Browser) -> None:
    """Every page once, themes and widths in turn; the slow test below does all of them."""
    need_axe()
    browser.open(made.built.index)
    turns = [(screen, dark) for screen in (DESK, PHONE, TABLET) for dark in (False, True)]
    for number, page in enumerate(PAGES):
        screen, dark = turns[number % len(turns)]
        browser.screen(*screen, dark=dark)
        found = check(browser, page.addresses[0])
        assert found == [], (page.name, screen[0], dark, found)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", [DESK, TABLET, PHONE], ids=["desk", "tablet", "phone"])
def test_axe_finds_nothing_serious_anywhere(made: Made, browser: Browser, screen: Screen, dark: bool) -> None:
    need_axe()
    browser.screen(*screen, dark=dark)
    browser.open(made.built.index)
    found = {address: check(browser, address) for address, _ in ADDRESSES}
    assert {address: problems for address, problems in found.items() if problems} == {}

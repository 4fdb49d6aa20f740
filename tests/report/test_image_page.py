"""The page of an image in a real browser: the question, what decides, the picture and its patches."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from clt_lightning.report.packing import unpack_column, unpack_maps, unpack_numbers
from tests.report.browser import PHONE, Browser
from tests.report.conftest import Made


def page_of(made: Made, number: int) -> dict[str, Any]:
    result: dict[str, Any] = made.data(f"images/{number:05d}")
    return result


def some_image(made: Made, wrong: bool, full: bool | None = None) -> int:
    pages, labels = made.data("images"), made.data("sprites")["labels"]
    for number, seen in zip(pages["image"], pages["predicted"]):
        if (seen != labels[number]) == wrong and full in (None, number in pages["full"]):
            result: int = number
            return result
    raise AssertionError("no such image was made")


def texts(browser: Browser, selector: str) -> list[str]:
    result: list[str] = browser.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")
    return result


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))


def test_the_margin_is_taken_apart(made: Made, browser: Browser) -> None:
    which = made.data("images")["full"][2]
    page = page_of(made, which)
    names = made.data("report")["classnames"]
    (more, less), rows = page["questions"][0], unpack_column(page["terms"]).reshape(-1, 13)
    browser.open(made.built.index, f"image/{which}", "image")
    assert texts(browser, ".question h2") == [f"Why {names[more]} and not {names[less]}"]
    wanted = page["logits"][more] - page["logits"][less]
    assert [number(t) for t in texts(browser, ".terms-sum, .terms-logit")] == pytest.approx([wanted] * 2, abs=2e-4)
    # any two classes, a class alone, a class against the mean
    browser.js(
        "(() => { const s = document.querySelectorAll('.question select'); s[0].value = '5';"
        " s[0].dispatchEvent(new Event('change')); })()"
    )
    browser.js(
        "(() => { const s = document.querySelectorAll('.question select'); s[1].value = '9';"
        " s[1].dispatchEvent(new Event('change')); })()"
    )
    assert texts(browser, ".question h2") == [f"Why {names[5]} and not {names[9]}"]
    assert number(texts(browser, ".terms-sum")[0]) == pytest.approx(page["logits"][5] - page["logits"][9], abs=2e-4)
    address = browser.js("location.hash")
    assert address == f"#/image/{which}?more=5&less=9"
    for route, value in (
        (f"image/{which}?more=5", page["logits"][5]),
        (f"image/{which}?more=5&less=mean", page["logits"][5] - np.mean(page["logits"])),
        (f"image/{which}?more=5&less=9&model=replaced", page["replaced"][5] - page["replaced"][9]),
        (f"image/{which}?more=99&less=9", wanted),
    ):
        browser.open(made.built.index, route, "image")
        assert number(texts(browser, ".terms-sum")[0]) == pytest.approx(value, abs=2e-4), route
        assert texts(browser, ".terms-sum") == texts(browser, ".terms-logit")
    browser.open(made.built.index, f"image/{which}?by=layer", "image")
    browser.wait("document.querySelector('svg.waterfall')")
    label = browser.js("document.querySelector('svg.waterfall').getAttribute('aria-label')")
    assert "attention 0" in label
    assert "linear skip" not in label
    sums = rows[:, more] - rows[:, less]
    assert f"attention 0 {sums[1]:.2f}".replace("-", "−") in label
    assert browser.errors() == []


@pytest.mark.parametrize("full", [False, True])
def test_features_for_and_against(made: Made, browser: Browser, full: bool) -> None:
    which = some_image(made, wrong=False, full=full)
    page = page_of(made, which)
    n = len(page["classes"])
    f = page["features"]
    layers, features = unpack_column(f["layer"]), unpack_column(f["feature"])
    total = unpack_numbers(f["total"], (len(layers), n + 1))
    place = {c: i for i, c in enumerate(page["classes"])}
    (more, less) = page["questions"][0]
    effect = total[:, place[more]] - total[:, place[less]]
    browser.open(made.built.index, f"image/{which}", "image")
    for table, order in ((1, np.argsort(-effect)), (2, np.argsort(effect))):
        selector = f".pair > :nth-child({table}) tbody tr"
        rows = [row for row in order[:20] if (effect[row] > 0) == (table == 1)]
        assert texts(browser, f"{selector} th a") == [f"L{layers[r]} · {features[r]}" for r in rows]
        shown = [number(t) for t in texts(browser, f"{selector} td.bar")]
        assert shown == pytest.approx(effect[rows], abs=0.0051)
    heads = texts(browser, ".pair > :nth-child(1) thead th")
    assert heads == ["Feature", "gradient", *(["integrated"] if full else []), "direct", "real"]
    # the five that speak most for the answer, and all of them together
    rows = browser.js(
        "[...document.querySelectorAll('table.without tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    best = np.argsort(-effect)[:5]
    assert [row[0].split("  ")[0].split(" ")[2] for row in rows[:5]] == [str(features[r]) for r in best]
    assert rows[5][0] == "all 5 together"
    margin = page["logits"][more] - page["logits"][less]
    for row, ablation in zip(
        rows, [*(a for r in best for a in page["ablations"] if a["rows"] == [r]), page["ablations"][-1]]
    ):
        after = ablation["after"][place[more]] - ablation["after"][place[less]]
        assert number(row[2]) == pytest.approx(after - margin, abs=0.0051)
        assert number(row[3]) == pytest.approx(after, abs=0.0051)
        assert number(row[1]) == pytest.approx(-ablation["predicted"], abs=0.0051)
    # the other way round it is the same features, and the signs turn
    browser.js("[...document.querySelectorAll('.question button')].find(b => b.textContent === 'swap').click()")
    turned = browser.js(
        "[...document.querySelectorAll('table.without tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert [row[0] for row in turned] == [row[0] for row in rows]
    assert [number(row[2]) for row in turned] == [-number(row[2]) for row in rows]
    assert browser.errors() == []


def test_a_mistake_is_one_click_away_and_asks_for_its_own_class(made: Made, browser: Browser) -> None:
    first = some_image(made, wrong=True)
    page, names = page_of(made, first), made.data("report")["classnames"]
    browser.open(made.built.index)
    browser.click("#nav a[data-page=images]")
    browser.wait("document.getElementById('main').dataset.ready === 'images'")
    assert texts(browser, ".seg [aria-pressed=true]")[0].startswith("mistakes (")
    assert browser.js("document.querySelector('.shots a').getAttribute('href')") == f"#/image/{first}"
    browser.click(".shots a.shot")
    browser.wait("document.getElementById('main').dataset.ready === 'image'")
    text = browser.js("document.body.innerText")
    assert "mistaken" in text
    assert f"but it is {names[page['label']]}" in text
    assert any("(its class)" in choice for choice in texts(browser, ".question .seg button"))
    browser.js("history.back()")
    browser.wait("document.getElementById('main').dataset.ready === 'images'")
    browser.js(
        "(() => { const s = document.querySelector('main input'); s.value = 'nothing here';"
        " s.dispatchEvent(new Event('input')); })()"
    )
    assert texts(browser, "main [role=status]")[0].startswith("0 of 240 images")
    assert browser.errors() == []


def test_a_patch_tells_its_codes(made: Made, browser: Browser) -> None:
    which = some_image(made, wrong=False)
    page = page_of(made, which)
    browser.open(made.built.index, f"image/{which}", "image")
    position = 6
    found = {}
    for layer, part in enumerate(page["codes"]):
        peaks, features = unpack_column(part["peaks"]), unpack_column(part["features"])
        maps = unpack_maps(part["maps"], peaks, 17)
        effects = np.zeros_like(maps)
        effects[maps != 0] = unpack_numbers(part["effects"][0], (-1,))
        for row in np.flatnonzero(maps[:, position]):
            found[f"L{layer} · {features[row]}"] = (maps[row, position], effects[row, position])
    assert len(found) > 5
    browser.click(f".patches button:nth-child({position})")
    assert texts(browser, ".patchcard h3") == ["Patch in row 2, column 2"]
    rows = browser.js(
        "[...document.querySelectorAll('.patchlist tbody tr')].map(r => [r.querySelector('a').textContent,"
        " ...[...r.cells].slice(1).map(c => c.textContent)])"
    )
    assert {row[0] for row in rows} == set(found)
    for name, code, effect in rows:
        assert number(code) == pytest.approx(found[name][0], rel=0.01)
        assert number(effect) == pytest.approx(found[name][1], abs=0.006)
    sizes = [abs(found[row[0]][1]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    # by keyboard: one patch to the right, and [CLS]
    browser.js(f"document.querySelectorAll('.patches button')[{position - 1}].focus()")
    browser.press("ArrowRight")
    assert browser.js("document.activeElement.getAttribute('aria-label')") == "patch in row 2, column 3"
    browser.js("document.activeElement.click()")
    assert texts(browser, ".patchcard h3") == ["Patch in row 2, column 3"]
    browser.js("[...document.querySelectorAll('.patchcard button')].find(b => b.textContent === '[CLS]').click()")
    assert texts(browser, ".patchcard h3") == ["[CLS]"]
    assert browser.errors() == []


@pytest.mark.parametrize("phone", [False, True])
def test_the_picture_stays_in_view_and_shows_maps(made: Made, browser: Browser, phone: bool) -> None:
    browser.screen(*(PHONE if phone else (1440, 900, 1.0, False)))
    which = some_image(made, wrong=False, full=True)
    browser.open(made.built.index, f"image/{which}", "image")
    browser.wait("document.querySelector('.picture img').complete")
    drawn = "document.querySelector('.overlay').toDataURL()"
    blank = browser.js(drawn)
    row = "document.querySelector('table.without tbody tr')"
    browser.js(f"{row}.scrollIntoView({{block: 'end'}})")
    box = browser.js("document.querySelector('.picture').getBoundingClientRect().toJSON()")
    header = browser.js("document.querySelector('.top').getBoundingClientRect().bottom")
    assert header <= box["top"]
    assert box["bottom"] < browser.js("innerHeight")
    # a tap on a row, not on its link, keeps the map; another takes it away
    browser.js(f"{row}.querySelector('td').click()")
    assert browser.js(drawn) != blank
    assert "code" in texts(browser, ".picturecard .said")[0]
    browser.js(f"{row}.querySelector('td').click()")
    assert browser.js(drawn) == blank
    assert browser.errors() == []


def test_every_thumbnail_leads_to_its_image(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "query/1", "query")
    lost = "[...document.querySelectorAll('main .thumb')].filter(t => !t.closest('a[href*=\"/image/\"]')).length"
    assert browser.js("document.querySelectorAll('main a.thumb').length") > 20
    assert browser.js(lost) == 0
    # on a card a click enlarges; the caption leads to the image, and so does the enlarged picture
    browser.open(made.built.index, "feature/1/3", "feature")
    shots = "[...document.querySelectorAll('main .shot')].filter(s => s.querySelector('button.enlarge'))"
    assert browser.js(f"{shots}.length") > 10
    assert browser.js(f"{shots}.every(s => s.querySelector('figcaption a[href*=\"/image/\"]'))")
    browser.js("document.querySelector('button.enlarge').click()")
    assert browser.js("document.querySelector('dialog a').getAttribute('href')").startswith("#/image/")
    assert browser.js("document.querySelectorAll('main a a, main button a, main a button').length") == 0
    assert browser.errors() == []


def test_an_image_without_a_page_says_how_to_get_one(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "image/4", "image")
    browser.js("CLT.load('sprites').then(s => { s.page = s.page.replaceAll('1', '0'); })")
    browser.js("location.hash = '#/image/5'")
    browser.wait("document.body.innerText.includes('has no page of its own')")
    assert "--image KEY" in browser.js("document.body.innerText")
    browser.open(made.built.index, "image/240", "image")
    assert "There is no image “240”" in browser.js("document.body.innerText")
    assert browser.errors() == []

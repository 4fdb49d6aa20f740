"""The served pages in a real browser."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.browser import LAPTOP, NAMES, PHONE, Browser, find
from tests.server.conftest import Served

#: What the page's own status lines say
SAID = "[...document.querySelectorAll('main [role=status]')].map(e => e.textContent).join()"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find() is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def browser(tab: Browser) -> Browser:
    tab.events.clear()
    tab.screen(*LAPTOP)
    return tab


def put_file(browser: Browser, data: bytes, name: str) -> None:
    """Drops a file onto the page."""
    text = json.dumps(base64.b64encode(data).decode())
    browser.js(
        f"(() => {{ const bytes = Uint8Array.from(atob({text}), c => c.charCodeAt(0));"
        " const files = new DataTransfer();"
        f" files.items.add(new File([bytes], {json.dumps(name)}));"
        " const drop = new DragEvent('drop', {dataTransfer: files, bubbles: true});"
        " document.querySelector('.drop').dispatchEvent(drop); })()"
    )


SHOWN = "[...document.querySelectorAll('.twobar b')].map(b => [b.dataset.class, b.textContent])"


def test_the_served_pages(served: Served, browser: Browser) -> None:
    url = served.server.url
    for screen in (LAPTOP, PHONE):
        browser.screen(*screen)
        for route, page in (("", "summary"), ("live", "live"), ("search?q=red%20circle", "search"), ("notes", "notes")):
            browser.open(url, route, page)
            assert browser.js("document.querySelectorAll('h1').length") == 1
            assert browser.js("document.documentElement.scrollWidth") <= screen[0], route
    shown = browser.js("[...document.querySelectorAll('#nav a')].map(a => a.dataset.page)")
    assert {"live", "search"} <= set(shown)
    assert browser.errors() == []
    assert {address.split("/")[2] for address in browser.requests() if address.startswith("http")} == {
        f"127.0.0.1:{served.port}"
    }


def test_a_slider_moves_the_probabilities(served: Served, browser: Browser) -> None:
    session = served.session
    key = session.keys[4]
    found = session.pick(key)
    layer, feature, _ = found["suggested"][0]
    browser.open(served.server.url, f"live?key={key.replace('/', '%2F')}&edits={layer}:{feature}:scale:1", "live")
    browser.wait("document.querySelectorAll('.twobar').length > 0")
    before = dict(browser.js(SHOWN))
    assert before == {str(c): f"{100 * found['probabilities'][int(c)]:.1f} %" for c in before}
    # from the move to the new numbers on the screen
    took = browser.js(
        "new Promise((done) => { const old = document.querySelector('.twobars').innerHTML;"
        " const start = performance.now(); const seen = new MutationObserver(() => {"
        " if (document.querySelector('.twobars').innerHTML !== old)"
        " { seen.disconnect(); done(performance.now() - start); } });"
        " seen.observe(document.querySelector('.twobars'), {childList: true, subtree: true, characterData: true});"
        " const range = document.querySelector('input[type=range]'); range.value = -1;"
        " range.dispatchEvent(new Event('input')); })"
    )
    assert took < 200 * 5  # 200 ms on an idle machine; tests share theirs
    from clt_lightning.analysis import Edit

    wanted = session.steer(found["image"], [Edit(layer, feature, "scale", -1.0)], "all", "original")["after"]
    after = dict(browser.js(SHOWN))
    assert after == {c: f"{100 * wanted[int(c)]:.1f} %" for c in after}
    assert after != before
    browser.wait("/24 of 24 images, \\d+ of another/.test(document.body.innerText) && document.querySelector('.flips')")
    assert f"{layer}:{feature}:scale:-1" in browser.js("decodeURIComponent(location.hash)")
    assert browser.errors() == []


def test_features_are_added_and_taken_away(served: Served, browser: Browser) -> None:
    browser.open(served.server.url, "live", "live")
    browser.wait("document.querySelectorAll('.chip').length > 3")
    for n in range(10):
        browser.js(f"document.querySelectorAll('.chip')[{n}].click()")
    assert browser.js("document.querySelectorAll('.slider').length") == 8
    assert "8 features at once" in browser.js(SAID)
    browser.js("document.querySelector('.slider button').click()")
    assert browser.js("document.querySelectorAll('.slider').length") == 7
    browser.js("[...document.querySelectorAll('button')].find(b => b.textContent === 'As it was').click()")
    browser.wait("document.querySelectorAll('.slider').length === 0")
    browser.wait("!/before; now as/.test(document.querySelector('.headline').textContent)")


def test_dropped_files(served: Served, browser: Browser) -> None:
    browser.open(served.server.url, "live", "live")
    browser.wait("document.querySelector('.drop-picture img')")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    put_file(browser, stream.getvalue(), "noise <b>.png")
    browser.wait("document.querySelector('.drop-picture b').textContent === 'noise <b>.png'")
    put_file(browser, b"%PDF-1.7 not a picture", "paper.pdf")
    browser.wait(f"/paper.pdf is no image that can be read/.test({SAID})")
    assert browser.js("document.querySelector('.drop-picture b').textContent") == "noise <b>.png"
    assert all("400" in error for error in browser.errors())


def test_an_ended_server_is_told(served: Served, browser: Browser, tmp_path: Path) -> None:
    browser.open(served.server.url, "search", "search")
    browser.js("CLT.live.ask = () => Promise.reject(new Error('The server does not answer. Was it ended?'))")
    browser.js("phrase.value = 'red'; phrase.form.requestSubmit()")
    browser.wait(f"/does not answer/.test({SAID})")


def test_another_sites_page_gets_nothing(served: Served, browser: Browser, tmp_path: Path) -> None:
    """A page from the disk, which is another origin, tries what a page of another site would."""
    page = tmp_path / "evil.html"
    page.write_text(
        f"<script>window.got = []; window.CLT = {{ put: (name) => got.push(name) }};</script>"
        f'<script src="{served.server.url}data/features.js"></script>'
        f'<img src="{served.server.url}thumbs/0000.webp" onload="got.push(1)">'
        f'<iframe src="{served.server.url}" onload="try {{ got.push(this.contentDocument.title) }}'
        ' catch (_) {}"></iframe>'
        f"<script>window.asked = Promise.allSettled([fetch('{served.server.url}data/features.js').then(r => r.text()),"
        f" fetch('{served.server.url}api/about', {{method: 'POST', body: '{{}}'}}).then(r => r.text())]);</script>"
    )
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait("document.readyState === 'complete' && window.asked")
    assert browser.js("asked.then(all => all.map(one => one.status))") == ["rejected", "rejected"]
    assert browser.js("got.filter(Boolean)") == []

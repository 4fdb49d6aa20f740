"""The card of a feature in a real browser: what drives it, what it does, and what can be taken away."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clt_lightning.analysis.features import load_features
from clt_lightning.report.catalogue import AGREES, PUSHES_AWAY, WRITES_OTHERS, conflict
from tests.report.browser import Browser
from tests.report.conftest import Made

TEXT = "document.getElementById('main').innerText"


@pytest.fixture
def card(made: Made, browser: Browser) -> Browser:
    browser.screen(1440, 900)
    browser.open(made.built.index, "feature/1/3", "feature")
    return browser


def test_it_says_what_drives_a_feature_and_what_it_does(made: Made, card: Browser) -> None:
    features = load_features(made.run)
    assert features.effects is not None
    text = card.js(TEXT)
    assert card.js("[...document.querySelectorAll('h2.side')].map(h => h.textContent)") == [
        "What drives it",
        "What it does",
    ]
    stats = features.stats
    lift, low, high = (float(stats[name][1, 3]) for name in ("lift", "lift_low", "lift_high"))
    assert f"red cross is {lift:.3g} times as frequent" in text
    assert f"{low:.3g} to {high:.3g}" in text
    assert f"{100 * float(stats['position_share'][1, 3, 0]):.1f} % of its firings at [CLS]" in text
    mean = float(features.effects["margin_mean"][1, 3])
    assert f"{mean:+.3g}" in text
    check = json.loads((made.run / "results.json").read_text())["evaluation"]["test"]["effects"]["margin"]["gradient"]
    found = check["all"]["correlation"]
    assert f"correlation is {found['value']:.2f} (95 %: {found['low']:.3f} to {found['high']:.3f})" in text
    assert f"{check['all']['n']:,}".replace(",", " ") in text
    card.js("for (const d of document.querySelectorAll('details')) d.open = true")
    rows = card.js("[...document.querySelectorAll('details table tbody tr')].map(r => r.innerText)")
    assert len(rows) == 2 * 2 * 7  # targets, methods, parts
    assert any("integrated" in row and "0.998" in row for row in rows)
    assert card.errors() == []


def test_the_direct_effects_bars_are_the_largest_and_the_smallest(made: Made, card: Browser) -> None:
    effects = load_features(made.run).effects
    assert effects is not None
    label = card.js(
        "document.querySelector('svg[aria-label^=\"Direct effect, the eight\"]').getAttribute('aria-label')"
    )
    shown = [float(part.rsplit(" ", 1)[1].replace("−", "-")) for part in label.split(": ", 1)[1].split(", ")]
    values = sorted(set(effects["direct"][1, 3].tolist()), reverse=True)
    np.testing.assert_allclose(shown, values, rtol=1e-2, atol=1e-3)
    assert "▸ red cross" in label


def test_a_badge_stands_where_the_two_disagree(made: Made, browser: Browser) -> None:
    features = load_features(made.run)
    found = np.stack([conflict(features, layer) for layer in range(features.info["layers"])])
    for kind, badge in ((PUSHES_AWAY, "pushes its class down"), (WRITES_OTHERS, "writes for others"), (AGREES, None)):
        layer, feature = np.argwhere(found == kind)[0]
        route = f"feature/{layer}/{feature}"
        browser.open(made.built.index, route, "feature")
        assert browser.js("document.querySelector('.badge')?.firstChild.textContent ?? null") == badge, route


def test_a_picture_opens_large_and_its_patches_can_be_read(made: Made, card: Browser) -> None:
    content = load_features(made.run).layers[1]
    card.wait("document.querySelector('.enlarge .thumb:not(.loading)')")
    card.js("document.querySelector('.enlarge').focus()")
    card.click(".enlarge")
    card.wait("document.querySelector('dialog[open] canvas')")
    canvas = card.js("document.querySelector('dialog canvas').getBoundingClientRect().toJSON()")
    codes = content["top_map"][3, 0]
    for patch in (0, 5, 15):
        at = {
            "x": canvas["x"] + (patch % 4 + 0.5) * canvas["width"] / 4,
            "y": canvas["y"] + (patch // 4 + 0.5) * canvas["height"] / 4,
        }
        card.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        said = card.js("document.querySelector('dialog [role=status]').textContent")
        assert said.startswith(
            f"row {patch // 4 + 1}, column {patch % 4 + 1}: code {float(f'{codes[patch + 1]:.3g}'):g}."
        )
    card.press("ArrowRight")
    card.wait("document.querySelector('dialog h2').textContent.includes('2 of')")
    assert card.js("document.querySelector('h1').textContent") == "Layer 1 · feature 3"  # the page behind it stays
    card.press("Escape")
    card.js("document.querySelector('dialog') && document.querySelector('dialog').close()")
    card.wait("!document.querySelector('dialog')")
    assert card.js("document.activeElement.className") == "enlarge"
    assert card.errors() == []


def test_neighbours_of_every_kind_lead_to_their_cards(made: Made, card: Browser) -> None:
    near = load_features(made.run).neighbours
    assert near is not None
    links = "[...document.querySelectorAll('ol.near a')].map(a => a.getAttribute('href'))"
    for title, kind in (
        ("write alike", "decoder"),
        ("fire together", "together"),
        ("readers", "reader"),
        ("writers", "writer"),
    ):
        card.js(f"[...document.querySelectorAll('.seg button')].find(b => b.textContent === '{title}').click()")
        layers = near[f"{kind}_layer"][1, 3] if kind in ("reader", "writer") else np.full(10, 1)
        wanted = [f"#/feature/{k}/{f}" for k, f in zip(layers, near[f"{kind}_feature"][1, 3]) if f >= 0]
        assert card.js(links) == wanted
    card.click("ol.near a")
    card.wait("location.hash !== '#/feature/1/3' && document.getElementById('main').dataset.ready === 'feature'")


def test_link_and_python_are_copied(made: Made, card: Browser) -> None:
    card.js("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    for label in ("copy link", "copy as Python"):
        card.js(f"[...document.querySelectorAll('button')].find(b => b.textContent === '{label}').click()")
        card.wait("window.copied")
        if label == "copy link":
            assert card.js("copied").endswith("index.html#/feature/1/3")
        else:
            text = card.js("copied")
            compile(text, "copied", "exec")
            assert "layer, feature = 1, 3\n" in text
            assert repr(str(made.run)) in text
        card.js("window.copied = null")

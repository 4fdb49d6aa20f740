"""The front page: the clearest features, who makes the decision, curves of the training, and what the run sets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from clt_lightning.analysis.features import load_features
from clt_lightning.report.pages.summary import _duration
from clt_lightning.report.training import POINTS, training_curves
from tests.report.browser import Browser
from tests.report.conftest import Made
from tests.report.made import PARTS


def write_events(run: Path, steps: int = 1000) -> None:
    with SummaryWriter(str(run)) as writer:
        for step in range(steps):
            writer.add_scalar("train/loss", 1 / (1 + step), step)
            writer.add_scalar("train/l0", 12.0, step)
            writer.add_scalar("train/step_time", 0.1, step)
        for step in (500, 999):
            writer.add_scalar("val/fvu/all", 0.1 / step, step)
            writer.add_scalar("val/fvu/all/layer_00", 0.3, step)
            writer.add_scalar("val/zero_shot/replaced/0-3/all", math.nan, step)


def test_curves_come_from_the_events(tmp_path: Path) -> None:
    assert training_curves(tmp_path) == []
    write_events(tmp_path)
    found = {drawing["title"]: drawing["curves"] for drawing in training_curves(tmp_path)}
    assert set(found) == {"Loss", "Unexplained variance (FVU), validation", "Active features (L0)"}
    (loss,) = found["Loss"]
    assert loss["name"] == "train/loss"
    assert len(loss["x"]) <= POINTS + 1
    assert (loss["x"][0], loss["x"][-1]) == (0, 999)
    for step, value in zip(loss["x"], loss["y"], strict=True):
        assert value == pytest.approx(1 / (1 + step), rel=1e-3)
    assert [curve["name"] for curve in found["Unexplained variance (FVU), validation"]] == ["val/fvu/all"]


def test_steps_that_were_done_again_stand_once(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with SummaryWriter(str(tmp_path), filename_suffix=str(value)) as writer:
            for step in range(5):
                writer.add_scalar("train/loss", value + step, step)
    (drawing,) = training_curves(tmp_path)
    assert drawing["curves"][0]["x"] == [0, 1, 2, 3, 4]


def test_how_long_it_took() -> None:
    began = {"started": "2026-01-01T12:00:00+00:00"}
    assert _duration(began | {"finished": "2026-01-01T13:30:00+00:00"}) == 5400
    assert _duration(began | {"finished": None}) is None
    assert _duration({}) is None


def test_the_clearest_features_are_the_most_monosemantic(made: Made) -> None:
    features = load_features(made.run)
    score = np.where(np.rint(features.stats["image_frequency"] * 240) >= 20, features.stats["monosemanticity"], np.nan)
    order = np.argsort(-np.nan_to_num(score, nan=-9), axis=None, kind="stable")[:12]
    assert made.data("summary")["clearest"] == [[int(i) // 160, int(i) % 160] for i in order]


def test_it_shows_who_makes_the_decision_and_leads_on(made: Made, browser: Browser) -> None:
    browser.screen(1440, 900)
    browser.open(made.built.index)
    text = browser.js("document.getElementById('main').innerText")
    total = sum(PARTS.values())
    assert f"Logit of the predicted class: {total:.1f}" in text
    label = browser.js("document.querySelector('svg[aria-label^=\"Parts of the logit\"]').getAttribute('aria-label')")
    assert "attention 49" in label
    assert "linear skip 16" in label
    assert browser.js("document.querySelectorAll('.tile-feature').length") == 12
    tiles = browser.js("[...document.querySelectorAll('.tiles .tile')].map(t => t.innerText)")
    kept = next(tile for tile in tiles if "Kept by the transcoder" in tile)
    arms = made.data("report")["evaluation"]["zero_shot"]["arms"]
    whole = {a["kind"]: a["top1"]["value"] for a in arms if a["first"] in (0, None) and a["tokens"] in ("all", None)}
    share = (whole["replaced"] - whole["mean_ablated"]) / (whole["original"] - whole["mean_ablated"])
    assert f"{100 * share:.1f} %" in kept
    # the raw record is there, folded
    assert not browser.js("[...document.querySelectorAll('details')].some(d => d.open)")
    assert "__main__.py fit" in browser.js("document.getElementById('main').textContent")
    browser.click(".tile-feature")
    browser.wait("document.getElementById('main').dataset.ready === 'feature'")
    assert browser.errors() == []

"""Saved edits: which images are named otherwise, what is kept of them, and the page that shows it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch

from clt_lightning.analysis.steering import Edit, SteeringResult
from clt_lightning.core.errors import UserError
from clt_lightning.report.figures.steering import classes_of, steering_figure
from clt_lightning.report.pages.steering import edit_data, edits_list, fresh
from clt_lightning.report.saved_edits import PICTURES, Flips, check_name, save_edit, saved_edits, steering_record
from clt_lightning.report.source import read_source
from tests.report.browser import PHONE, Browser
from tests.report.conftest import Made, read_data
from tests.report.made_steering import EDITS, GAINED, LOST, OTHER

BEFORE = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]]).double()
AFTER = torch.tensor([[0.2, 0.7, 0.1], [0.15, 0.3, 0.55], [0.1, 0.1, 0.8], [0.4, 0.5, 0.1], [0.1, 0.2, 0.7]]).double()


def seen(most: int = 9, labels: list[int] | None = None) -> Flips:
    flips = Flips(lambda image: (255 * image).to(torch.uint8), most)
    for rows in ([0, 1], [2, 3, 4]):
        batch = {"key": [f"k{n}" for n in rows], "image": torch.rand(len(rows), 3, 300, 200)}
        if labels is not None:
            batch["label"] = torch.tensor([labels[n] for n in rows])
        flips(batch, BEFORE[rows], AFTER[rows])
    return flips


def test_images_are_counted_by_the_way_they_went() -> None:
    flips = seen(labels=[1, 0, 0, 1, 2])
    assert flips.counts == {"gained": 2, "lost": 1, "other": 1}
    assert [image["key"] for image in flips.kept["gained"]] == ["k0", "k3"]
    first = flips.kept["gained"][0]
    assert (first["was"], first["now"], first["label"]) == (0, 1, 1)
    assert first["change"] == pytest.approx(0.5)
    assert first["classes"] == [[0, 0.7, 0.2], [1, 0.2, 0.7], [2, 0.1, 0.1]]
    assert first["picture"].startswith("data:image/webp;base64,")
    # without labels, and with room for two: those that change most
    flips = seen(2)
    assert flips.counts == {"gained": 0, "lost": 0, "other": 4}
    assert [image["key"] for image in flips.kept["other"]] == ["k2", "k0"]


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    found = SteeringResult([f"k{n}" for n in range(5)], torch.tensor([1, 0, 0, 1, -1]), list("abc"), BEFORE, AFTER)
    edits = [Edit(0, 3, "set", 2.0), Edit(1, 4, "scale", 0.0, 0)]
    keys = found.keys
    record = steering_record(
        tmp_path, found, edits, seen(labels=[1, 0, 0, 1, -1]), name="a.b-1", tokens="cls", keys=keys
    )
    path = save_edit(tmp_path, record)
    assert path == tmp_path / "steering" / "a.b-1.json"
    ((again,), others) = saved_edits(tmp_path, 7)
    assert others == []
    assert again == json.loads(json.dumps(record))
    assert again["edits"][1] == {"layer": 1, "feature": 4, "kind": "scale", "value": 0.0, "position": 0}
    assert (again["labelled"], again["keys"]) == (4, keys)
    assert again["top1"]["before"] == pytest.approx(0.25)
    assert [a + b for a, b in zip(again["mean_before"], again["mean_change"])] == pytest.approx(AFTER.mean(0).tolist())
    assert classes_of(again) == [2, 1, 0]
    # of other weights
    save_edit(tmp_path, record | {"name": "older", "run": {"title": "r", "started": None, "step": 6}})
    assert saved_edits(tmp_path, 7) == ([again], ["older"])
    for name in ("", "a/b", "../a", ".a", "a" * 65, "a b"):
        with pytest.raises(UserError, match="a name is made of"):
            check_name(name)
    for content, lacks in (("{}", "; save it again"), ('{"clt_steering": 1, "run": {}}', ": it lacks split;")):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"a\.b-1\.json: is no edit that `steer --save` has written{lacks}"):
            saved_edits(tmp_path, 7)


def test_the_picture_has_all_parts(made: Made) -> None:
    (crosses, many), _ = saved_edits(made.run, None)
    texts = [t.get_text() for t in steering_figure(crosses).texts]
    assert texts[0].startswith("1/3 = 2; 3/120 @0 x 0: 37 of 60 images")
    assert texts[1:] == ["now right: 5 images", "now wrong: 30 images", "another class: 2 images"]
    assert "34 more" in steering_figure(many).texts[0].get_text()
    none = many | {"pictures": {way: [] for way in many["pictures"]}, "mean_change": [0.0] * 12}
    assert len(steering_figure(none).texts) == 1


def test_the_page_has_the_saved_numbers(made: Made) -> None:
    listed = made.data("steering")
    assert [entry["name"] for entry in listed] == sorted(EDITS)
    assert [entry["count"] for entry in listed] == [len(EDITS[name]) for name in sorted(EDITS)]
    data = made.data("steering/crosses")
    assert data["flips"] == {"gained": GAINED, "lost": LOST, "other": OTHER}
    assert [len(data["pictures"][way]) for way in ("gained", "lost", "other")] == [GAINED, PICTURES, OTHER]
    keys = read_source(made.run, "test").images[0]
    assert [keys[image["image"]] for image in data["pictures"]["lost"]] == [i["key"] for i in data["pictures"]["lost"]]
    assert made.data("report")["files"]["steering_crosses"] == [
        "figures/steering_crosses.svg",
        "figures/steering_crosses.png",
    ]
    assert edits_list([]) is None
    (record, _), _ = saved_edits(made.run, None)
    assert edit_data(record, {}, pictures=False)["pictures"]["lost"][0]["picture"] is None
    # a server shows what was saved after the report
    later = fresh(dataclasses.replace(read_source(made.run, "test")))
    assert later["steering"] == listed
    assert later["steering/crosses"] == data


def test_the_page_in_a_browser(made: Made, browser: Browser) -> None:
    text = "document.getElementById('main').innerText"
    browser.screen(*PHONE)
    browser.open(made.built.index, "steering", "steering")
    browser.wait("document.querySelector('#nav [data-page=steering]') !== null")
    said = browser.js(text)
    for part in ("Now right: 5", "Now wrong: 30", "From one class to another: 2", "a <set>", "set to 2", "L3 · 120 @0"):
        assert part in said
    assert "The 24 that change most are shown" in said
    assert browser.js("document.querySelectorAll('.went.lost li.moved').length") == PICTURES
    assert browser.js("document.querySelector('li.moved a.thumb').getAttribute('href')").startswith("#/image/")
    command = browser.js("CLT.load('steering/crosses').then((d) => CLT.steering.command(d.edits, d, d.name))")
    images = read_data(made.folder, "steering/crosses")["images"]
    assert command.endswith(f"made/version_0 --set 1/3=2 --scale 3/120@0=0 --images {images} --save crosses")
    edit, place = (
        "{kind: 'add', layer: 1, feature: 3, value: -0.123456}",
        "{tokens: 'cls', base: 'replaced', split: 'val'}",
    )
    command = browser.js(f"CLT.steering.command([{edit}], {place})")
    assert command.endswith("--add 1/3=-0.123456 --tokens cls --base replaced --split val --save NAME")
    by_key = "{tokens: 'all', base: 'original', images: 2, keys: ['0/s0000050', \"a cat's.png\"]}"
    command = browser.js(f"CLT.steering.command([{edit}], {by_key})")
    assert shlex.split(command)[-6:] == ["--image", "0/s0000050", "--image", "a cat's.png", "--save", "NAME"]
    # by keyboard to the other edit
    browser.js("[...document.querySelectorAll('main th a')].find(a => a.textContent === 'many').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('section.card h2') && /32 further features/.test(document.body.innerText)")
    assert browser.goto("steering/none") == "Nothing here"
    assert browser.errors() == []
    assert read_data(made.folder, "steering") is not None

"""Notes: what the pages export, `report --notes` reads back; a bad file is named with its key, in both languages."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.report.notes import RunId, check_about, notes_of, read_notes
from clt_lightning.report.source import read_source
from tests.report.browser import Browser
from tests.report.conftest import Made, read_data

GOOD: dict[str, Any] = {
    "clt_notes": 1,
    "run": None,
    "features": {
        "1/3": {"star": True, "label": "stripes", "comment": "two\nlines"},
        "0/7": {"star": False, "label": " "},
    },
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "notes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    notes = read_notes(written(tmp_path, GOOD))
    assert notes.features == {"1/3": {"star": True, "label": "stripes", "comment": "two\nlines"}}
    assert notes.run is None


#: What is wrong with a file, for Python and for the page's import: (content, part of the message)
BAD: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("[]", "table|clt_notes"),
    ({}, "clt_notes: expected 1"),
    (GOOD | {"clt_notes": 2}, "clt_notes: expected 1"),
    (GOOD | {"run": "mine"}, "run: expected title, started"),
    (GOOD | {"features": []}, "features: expected notes by"),
    (GOOD | {"features": {"3": {}}}, r"features\.3: expected <layer>/<feature>"),
    (GOOD | {"features": {"01/3": {}}}, r"features\.01/3: expected <layer>/<feature>"),
    (GOOD | {"features": {"-1/3": {}}}, r"features\.-1/3: expected <layer>/<feature>"),
    (GOOD | {"features": {"\u0661/3": {}}}, "expected <layer>/<feature>"),
    (GOOD | {"features": {"__proto__": {}}}, "expected <layer>/<feature>"),
    (GOOD | {"features": {"1/3": "stripes"}}, r"features\.1/3: expected star, label, comment"),
    (GOOD | {"features": {"1/3": {"name": "x"}}}, r"features\.1/3\.name: is not known"),
    (GOOD | {"features": {"1/3": {"star": 1}}}, r"features\.1/3\.star: expected true or false"),
    (GOOD | {"features": {"1/3": {"label": 7}}}, r"features\.1/3\.label: expected a text"),
    (GOOD | {"features": {"1/3": {"label": "x" * 81}}}, r"features\.1/3\.label: .*at most|features\.1/3\.label: 81"),
    (GOOD | {"features": {"1/3": {"comment": None}}}, r"features\.1/3\.comment: expected a text"),
]


@pytest.mark.parametrize(("content", "says"), BAD)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, content: Any, says: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=says) as raised:
        read_notes(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_key_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more: is not known here"):
        read_notes(written(tmp_path, GOOD | {"more": 1}))
    with pytest.raises(UserError, match=r"nowhere\.json"):
        read_notes(tmp_path / "nowhere.json")


def test_notes_of_other_weights(tmp_path: Path) -> None:
    mine, other = RunId("a/version_0", "2026-01-01", 100), RunId("a/version_0", "2026-01-01", 200)
    notes = read_notes(written(tmp_path, GOOD | {"run": mine.to_json()}))
    check_about([notes], [other, mine])
    with pytest.raises(
        UserError, match=r"run: these notes are about a/version_0, step 100.*here is a/version_0, step 200"
    ):
        check_about([notes], [other])
    assert notes_of([notes], mine, 4, 160) == notes.features
    assert notes_of([notes], other, 4, 160) == {}
    renamed = dataclasses.replace(mine, title="copy")  # folders are moved
    assert notes_of([notes], renamed, 4, 160) == notes.features
    with pytest.raises(UserError, match=r"features\.1/3: the run has layers 0\.\.0"):
        notes_of([notes], mine, 1, 160)


@pytest.fixture(scope="module")
def run(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made run with its features alone: a report of it takes a moment."""
    folder = tmp_path_factory.mktemp("noted") / "version_0"
    shutil.copytree(made.run, folder, ignore=shutil.ignore_patterns("report", "retrieval"))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"evaluation": {}}))
    return folder


def test_report_shows_the_names(run: Path, tmp_path: Path) -> None:
    source = read_source(run, "test")
    first = written(tmp_path, GOOD | {"run": source.id.to_json()})
    (tmp_path / "two").mkdir()
    second = written(tmp_path / "two", GOOD | {"features": {"1/3": {"label": "zebra"}}})
    words = ["report", "--run", str(run), "--no_pictures", "--features", "1", "--queries", "0"]
    main([*words, "--output", str(tmp_path / "out"), "--notes", str(first), "--notes", str(second)])
    assert read_data(tmp_path / "out", "notes") == {"1/3": {"star": True, "label": "zebra", "comment": "two\nlines"}}


def test_a_person_notes_and_the_report_takes_it(run: Path, tmp_path: Path, browser: Browser) -> None:
    words = ["report", "--run", str(run), "--no_pictures", "--features", "8", "--queries", "0"]
    main(words)
    index = run / "report" / "index.html"
    browser.open(index, "feature/1/3", "feature")
    browser.js("localStorage.clear()")
    browser.open(index, "feature/1/3", "feature")
    browser.click(".star")
    browser.js("document.querySelector('.named').value = 'red <b>crosses</b>'")
    browser.js("document.querySelector('.named').dispatchEvent(new Event('change'))")
    browser.js("document.querySelector('.notebar textarea').value = 'near edges'")
    browser.js("document.querySelector('.notebar textarea').dispatchEvent(new Event('change'))")
    browser.open(index, "feature/1/4", "feature")  # another one knows nothing of it
    assert browser.js("document.querySelector('.named').value") == ""
    browser.open(index, "feature/1/3", "feature")
    assert browser.js("document.querySelector('.named').value") == "red <b>crosses</b>"
    assert browser.js("document.querySelector('.star').getAttribute('aria-pressed')") == "true"

    browser.open(index, "notes", "notes")
    assert browser.js("[...document.querySelectorAll('.noted')].map(n => n.textContent)") == [
        "★L1 · 3✎ red <b>crosses</b>near edgesForget"
    ]
    exported = browser.js("CLT.notes.text()")
    notes = read_notes(written(tmp_path, exported))
    assert notes.features == {"1/3": {"star": True, "label": "red <b>crosses</b>", "comment": "near edges"}}
    assert read_source(run, "test").id.same(notes.run or {})

    main([*words, "--output", str(tmp_path / "out"), "--notes", str(tmp_path / "notes.json")])
    browser.js("localStorage.clear()")
    browser.open(tmp_path / "out" / "index.html", "notes", "notes")
    assert "red <b>crosses</b>" in browser.js("document.querySelector('.noted').textContent")
    # forgetting what the report came with lasts as well
    browser.js("document.querySelector('.noted button').click()")
    browser.wait("!document.querySelector('.noted')")
    browser.open(tmp_path / "out" / "index.html", "notes", "notes")
    assert browser.js("document.querySelectorAll('.noted').length") == 0
    browser.js("localStorage.clear()")
    assert browser.errors() == []


def taken(browser: Browser, text: str) -> str:
    """What the page says of a file of notes."""
    take = f"CLT.notes.take({json.dumps(text)}, 4, 160)"
    return str(browser.js(f"(() => {{ try {{ {take}; return ''; }} catch (e) {{ return e.message; }} }})()"))


def test_the_pages_import_checks_the_same(made: Made, browser: Browser) -> None:
    browser.open(made.built.index, "notes", "notes")
    browser.js("localStorage.clear()")
    for content, says in BAD:
        text = content if isinstance(content, str) else json.dumps(content)
        said = taken(browser, text)
        assert re.search(says, said), (text, said)
    other = json.dumps(GOOD | {"run": {"title": "b", "started": "2020", "step": 1}})
    said = taken(browser, other)
    assert said.startswith("run: these notes are of b, step 1")
    assert browser.js("CLT.notes.all().length") == 0
    assert browser.js(f"CLT.notes.take({json.dumps(json.dumps(GOOD))}, 4, 160)") == 2
    assert browser.js("CLT.notes.all()") == [[1, 3, GOOD["features"]["1/3"]]]
    browser.js("localStorage.clear()")

"""A made-up run with its report, built once; and a browser, where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clt_lightning.report import Built, ReportOptions, build_report, draft
from clt_lightning.report.folder import ReportFolder
from tests.report.browser import NAMES, Browser, find
from tests.report.made import MadePictures, make_run


class Made(NamedTuple):
    run: Path
    pictures: MadePictures
    built: Built

    @property
    def folder(self) -> Path:
        return self.built.index.parent

    def data(self, name: str) -> Any:
        return read_data(self.folder, name)


def read_data(folder: Path, name: str) -> Any:
    """The value in one of the report's data files."""
    text = (folder / "data" / f"{name}.js").read_text(encoding="utf-8")
    head = f"CLT.put({json.dumps(name)},"
    assert text.startswith(head)
    assert text.endswith(");\n")
    return json.loads(text[len(head) : -3])


def empty_figures(folder: ReportFolder, name: str, figure: object) -> None:
    """In the place of `save`, which takes most of a report's time: files of these names, with nothing drawn."""
    for kind in ("svg", "png"):
        folder.file(f"figures/{name}.{kind}").touch()


@pytest.fixture(autouse=True)
def _figures_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """But in the report of `made`, which is built before."""
    monkeypatch.setattr(draft, "save", empty_figures)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    run, pictures = make_run(tmp_path_factory.mktemp("report"))
    return Made(run, pictures, build_report(run, ReportOptions(images=6, queries=5), pictures=pictures))


@pytest.fixture(scope="session")
def _tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find() is None:
        # in CI a skip is a failure: tests/conftest.py
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def browser(_tab: Browser) -> Browser:
    _tab.events.clear()
    _tab.screen(1366, 768)
    return _tab

"""One list of pages: files, navigation and docs come from it."""

from __future__ import annotations

import html
import re
from pathlib import Path

from clt_lightning.report.pages import PAGES
from tests.report.conftest import Made

FOLDER = Path(__file__).parents[2] / "clt_lightning" / "report" / "pages"
DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def test_a_page_is_one_python_file_and_one_script() -> None:
    names = {page.name for page in PAGES}
    assert len(names) == len(PAGES)
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} == names
    assert {path.stem for path in FOLDER.glob("*.js")} == names
    for page in PAGES:
        assert re.fullmatch("[a-z_]+", page.name)
        assert f"CLT.pages.{page.name} = " in (FOLDER / f"{page.name}.js").read_text(encoding="utf-8")
        assert page.addresses, f"{page.name}: no address that the tests could open"
        assert page.under is None or page.under in names


def test_the_navigation_holds_the_list(made: Made) -> None:
    text = (made.folder / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<a href="#/(\w*)" data-page="(\w+)">([^<]+)</a>', text)
    listed = [page for page in PAGES if page.under is None and not page.optional]
    wanted = [("" if page is PAGES[0] else page.name, page.name, page.title) for page in listed]
    assert [(address, name, html.unescape(title)) for address, name, title in shown] == wanted
    for page in PAGES:
        assert f'src="assets/js/pages/{page.name}.js"' in text
    assert [entry["name"] for entry in made.data("pages")] == [page.name for page in PAGES]


def test_the_docs_hold_the_list() -> None:
    rows = [f"| {page.title} | {page.about.rstrip('.')} | {page.source} |" for page in PAGES]
    table = re.search(
        r"\| page \| shows \| from \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", DOCS.read_text(encoding="utf-8")
    )
    assert table is not None
    assert table[1].splitlines() == rows, "the table of docs/report.md should be:\n" + "\n".join(rows)

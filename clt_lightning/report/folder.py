"""The report's folder: data as scripts, tables, figures; put in its place when it is complete."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import whole_folder

ASSETS = Path(__file__).parent / "assets"
PAGES = Path(__file__).parent / "pages"
#: What the pages share, in the order in which it must run; then come the pages, in any
SCRIPTS = (
    "core.js",
    "theme.js",
    "colors.js",
    "figure.js",
    "copy.js",
    "intervals.js",
    "charts/heatmap.js",
    "charts/axes.js",
    "charts/lines.js",
    "charts/log.js",
    "charts/bars.js",
    "charts/scatter.js",
    "charts/waterfall.js",
    "charts/pareto.js",
    "thumbs.js",
    "maps.js",
    "lightbox.js",
    "effects.js",
    "features/catalogue.js",
    "features/names.js",
    "features/numbers.js",
    "features/search.js",
    "features/columns.js",
    "features/box.js",
    "features/vtable.js",
    "features/gallery.js",
    "features/strongest.js",
    "card/drives.js",
    "card/does.js",
    "image/study.js",
    "image/picture.js",
    "image/terms.js",
    "image/deciding.js",
    "image/codes.js",
    "circuit/graph.js",
    "circuit/layout.js",
    "circuit/draw.js",
    "circuit/node.js",
    "circuit/pins.js",
    "evolution/strip.js",
    "notes.js",
    "runs.js",
    "compare/features.js",
    "live/server.js",
    "live/opened.js",
    "live/sliders.js",
    "live/answers.js",
    "steering/command.js",
    "steering/images.js",
    "steering/classes.js",
    "steering/live.js",
    "circuit/live.js",
)
#: ... and after them
LAST = ("router.js", "start.js")
STYLES = (
    "tokens.css",
    "layout.css",
    "parts.css",
    "charts.css",
    "image.css",
    "circuit.css",
    "evolution.css",
    "notes.css",
    "runs.css",
    "live.css",
    "steering.css",
)
MARK = "clt-report.json"


def pages_version() -> str:
    """A sum over the scripts and style sheets: pages of another one do not fit this package's server."""
    digest = hashlib.sha256()
    for path in sorted([*ASSETS.rglob("*.*"), *PAGES.glob("*.js")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def report_folder(target: Path) -> Iterator[ReportFolder]:
    """Writes a report beside its final place and moves it there at the end: a reader never sees half of one.

    Args:
        target: where the report will be. A report that is there is replaced; any other folder that is not empty is
            refused.

    Raises:
        UserError: `target` is a file, holds something else than a report, or the disk does not take it.
    """
    if target.is_file():
        raise UserError(f"--output {target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MARK).is_file():
        raise UserError(f"--output {target} holds files that are no report: name another folder, or empty it yourself")
    with whole_folder(target) as path:
        yield ReportFolder(path)


class ReportFolder:
    """The files of a report.

    Args:
        path: where they are written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        """The path of a file of the report, with its folder made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def data(self, name: str, value: Any) -> None:
        """Writes `data/<name>.js`, which the pages read with `CLT.load(name)`."""
        self.file(f"data/{name}.js").write_text(data_text(name, value), encoding="utf-8")

    def table(self, name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        """Writes `tables/<name>.csv`; None is an empty cell.

        Returns:
            Its address in the report.
        """
        with self.file(f"tables/{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(head)
            writer.writerows(rows)
        return f"tables/{name}.csv"

    def assets(self, title: str, run: str, pages: Sequence[dict[str, Any]], own: Mapping[str, Path]) -> None:
        """Writes `index.html`, the style sheets and the scripts.

        Args:
            title: of the window.
            run: the run's name.
            pages: `Page.entry` of each, in the order of the navigation.
            own: scripts of pages that are not this package's, by name.
        """
        scripts = [*SCRIPTS, *(f"pages/{page['name']}.js" for page in pages), *LAST]
        addresses = [f"assets/js/{name}" for name in scripts]
        addresses[1:1] = [f"data/{name}.js" for name in ("pages", "runs", "notes")]  # core.js takes the data
        parts = {
            "title": html.escape(title),
            "run": html.escape(run),
            "styles": "\n".join(f'<link rel="stylesheet" href="assets/css/{name}">' for name in STYLES),
            "nav": "\n".join(_link(page, first=page is pages[0]) for page in pages if _listed(page)),
            "scripts": "\n".join(f'<script src="{address}"></script>' for address in addresses),
        }
        page = Template((ASSETS / "index.html").read_text(encoding="utf-8"))
        self.file("index.html").write_text(page.safe_substitute(parts), encoding="utf-8")
        self.data("pages", list(pages))
        for kind in ("css", "js"):
            shutil.copytree(ASSETS / kind, self.path / "assets" / kind)
        for page_name in (page["name"] for page in pages):
            shutil.copy(own.get(page_name, PAGES / f"{page_name}.js"), self.file(f"assets/js/pages/{page_name}.js"))

    def lead_to(self, address: str, title: str) -> None:
        """Writes an `index.html` that leads to a page of one of several reports."""
        page = (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
            f'<meta http-equiv="refresh" content="0; url={html.escape(address)}">\n'
            f'<p><a href="{html.escape(address)}">{html.escape(title)}</a></p></html>\n'
        )
        self.file("index.html").write_text(page, encoding="utf-8")

    def mark(self, record: dict[str, Any]) -> None:
        """Marks the folder as a report, which a later one may replace."""
        self.file(MARK).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def size(self) -> tuple[int, int]:
        """Files and bytes written so far."""
        sizes = [path.stat().st_size for path in self.path.rglob("*") if path.is_file()]
        return len(sizes), sum(sizes)


def data_text(name: str, value: Any) -> str:
    """What `data/<name>.js` holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"CLT.put({json.dumps(name)},{text});\n"


def _listed(page: dict[str, Any]) -> bool:
    return page["under"] is None and not page["optional"]


def _link(page: dict[str, Any], first: bool) -> str:
    """A page's entry in the navigation; the first one is the front page."""
    address = "" if first else page["name"]
    return f'<a href="#/{address}" data-page="{page["name"]}">{html.escape(page["title"])}</a>'

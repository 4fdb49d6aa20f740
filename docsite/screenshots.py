"""`python -m docsite.screenshots`: the pictures of the pages, taken from a run's report with Chromium.

Those of docs/circuits.md are made by `python -m docsite.circuit_screenshots`.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

from PIL import Image

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import whole_file
from clt_lightning.report import ReportOptions, build_report
from clt_lightning.runs.folder import find_run
from tests.report.browser import Browser, find

WIDTH, HEIGHT = 1180, 760
_FIRST = "document.querySelector('#main a[href*=\"#/{page}/\"]').getAttribute('href').split('#/')[1]"


def take(run: Path, output: Path, data_root: str | None = None) -> list[Path]:
    """Takes the pictures of a run that `test` has evaluated; its report is made where there is none.

    Args:
        run: its folder.
        output: gets `<name>.webp`.
        data_root: where the run's data are now, if they were moved.

    Raises:
        UserError: no browser, or no such run.
    """
    if find() is None:
        raise UserError("no Chromium on this machine (Debian: apt-get install chromium)")
    folder = find_run(run).path
    index = folder / "report" / "index.html"
    if not index.is_file():
        build_report(folder, ReportOptions(opening={"data_root": data_root}))
    written = []
    with tempfile.TemporaryDirectory() as scratch, Browser(Path(scratch) / "profile") as browser:

        def shoot(name: str, route: str, page: str) -> None:
            browser.open(index, route, page)
            time.sleep(1)  # pictures that are read when they are shown
            browser.screenshot(Path(scratch) / "shot.png")
            written.append(save_webp(Image.open(Path(scratch) / "shot.png"), output / f"{name}.webp"))

        browser.screen(WIDTH, HEIGHT)
        shoot("replacement", "cascade", "cascade")
        shoot("features", "features", "features")
        shoot(
            "feature", browser.js(_FIRST.format(page="feature")), "feature"
        )  # the clearest, which the list begins with
        browser.open(index, "images", "images")
        shoot("image", browser.js(_FIRST.format(page="image")), "image")
    return written


def save_webp(picture: Image.Image, target: Path) -> Path:
    """Writes a picture as the docs keep them."""
    data = io.BytesIO()
    picture.convert("RGB").save(data, "WEBP", quality=82, method=6)
    with whole_file(target) as path:
        path.write_bytes(data.getvalue())
    return target


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="an evaluated run of the demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    parser.add_argument("--data_root", help="where the run's data are now, if they were moved")
    args = parser.parse_args()
    try:
        for path in take(args.run, args.output, args.data_root):
            print(path)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

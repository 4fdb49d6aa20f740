"""`python -m docsite.circuit_screenshots`: the pictures of docs/circuits.md, from a served run and measured curves."""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure
from PIL import Image

from clt_lightning.analysis.run import open_run
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json
from clt_lightning.report.existing import read_data, report_of
from clt_lightning.report.figures.style import SERIES, house_style, new_figure
from clt_lightning.report.source import Source, read_source
from clt_lightning.server import LocalServer, Session, SessionOptions
from clt_lightning.server.api import connect
from docsite.screenshots import save_webp
from tests.report.browser import Browser, find

WIDTH = 1360
#: A card is cut off below that
_HIGHEST = 1000
#: Arms that are drawn, in the order of colours; those that a run has not are left out
ARMS = ("graph", "edges", "nodes", "nodes_plain", "activation", "random")

#: The four features without which the answer is predicted to fall most
_STRONGEST = (
    "(() => {{ const g = CLT.circuit(CLT.get('{name}').circuits[{which}]);"
    " const fall = (n) => g.predict.predict([[n, 0]]).targets[0];"
    " return g.nodes.filter(n => n.kind === 'feature' && g.predict.known([n]))"
    ".map(n => [n.id, fall(n)]).sort((a, b) => a[1] - b[1]).slice(0, 4).map(([id]) => id); }})()"
)


@contextmanager
def served(source: Source) -> Iterator[LocalServer]:
    """The run's report with its model behind it."""
    with LocalServer(0) as server:
        server.root = report_of(source, None, {})
        run = open_run(source.run)
        run.datamodule.prepare_data()
        session = Session(run, SessionOptions(source.split, 16), source)
        connect(server, session)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            session.close()
            thread.join(10)


def circuit(browser: Browser, source: Source, output: Path, key: str) -> list[Path]:
    """The circuit's page of an image with three pins: all of it, what one node reads, and what the model says.

    Args:
        browser: an open tab.
        source: a run whose report has a circuit of the image.
        output: gets `circuit.webp`, `circuit-node.webp` and `circuit-pinned.webp`.
        key: of the image; its last circuit is taken.
    """
    number = source.images[0].index(key)
    data = read_data(report_of(source, None, {}), f"circuits/{number:05d}")
    if data is None:
        raise UserError(f"the report has no circuit of {key}: `graph --image {key} --page` adds one")
    which = len(data["circuits"]) - 1
    with served(source) as server, tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        browser.screen(WIDTH, 1500)
        route = f"circuit/{number}?target={which or ''}"
        browser.open(server.url, route, "circuit")
        pins = browser.js(_STRONGEST.format(name=f"circuits/{number:05d}", which=which))
        groups = quote(json.dumps([["the three", *pins[:3]]]))
        browser.open(
            server.url, f"{route}&heads=1&clickedId={pins[1]}&pinnedIds={','.join(pins)}&supernodes={groups}", "circuit"
        )
        browser.js("[...document.querySelectorAll('button')].find(b => b.textContent === 'Ask the model').click()")
        browser.wait("[...document.querySelectorAll('.pinscard td.real')].some(cell => cell.textContent !== '–')")
        browser.wait("!document.querySelector('main .thumb.loading')")
        print(browser.js("document.querySelector('.pinscard').innerText"))
        browser.screenshot(shot, full=True)
        page = Image.open(shot)
        boxes = {
            name: browser.js(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
            for name, selector in (("circuit", ".circuitcard"), ("node", ".nodecard"), ("pinned", ".pinscard"))
        }
        cuts = {"circuit": (0, 0, WIDTH, round(boxes["circuit"]["bottom"]) + 16)}
        for name in ("node", "pinned"):
            box = boxes[name]
            bottom = min(box["bottom"], box["top"] + _HIGHEST)
            cuts[f"circuit-{name}"] = tuple(round(v) for v in (box["left"], box["top"], box["right"], bottom))
        return [save_webp(page.crop(cut), output / f"{name}.webp") for name, cut in cuts.items()]


def evolution(browser: Browser, source: Source, output: Path) -> Path:
    """The page of features over the layers, of a run that has been measured."""
    folder = report_of(source, None, {})
    browser.screen(WIDTH, 1500)
    browser.open(folder / "index.html", "evolution", "evolution")
    time.sleep(1)  # pictures that are read when they are shown
    browser.wait("!document.querySelector('main .linkstrip .thumb.loading')")
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        browser.screenshot(shot)
        return save_webp(Image.open(shot), output / "evolution.webp")


def faithful_figure(content: dict) -> Figure:  # type: ignore[type-arg]
    """Insertion and deletion of every arm over the share of nodes, on a log axis, from a `.curves.json`."""
    with house_style():
        figure = new_figure(9.2, 3.6)
        panels = figure.subplots(1, 2, sharey=True)
        names = [name for name in ARMS if name in content["arms"]]
        for axes, mode in zip(panels, ("insertion", "deletion")):
            for color, name in zip(SERIES, names):
                arm = content["arms"][name]
                points = arm[mode]["adjusted_logit"]["normalised"]
                kept = [(x, point) for x, point in zip(arm["fractions"], points) if x > 0]
                x = [100 * share for share, _ in kept]
                axes.plot(
                    x, [p["value"] for _, p in kept], "o-", color=color, markersize=3, label=content["words"][name]
                )
                low, high = ([p[end] for _, p in kept] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axes.set(xscale="log", title=mode, xlabel="% of each layer's nodes")
        panels[0].set_ylabel("share of the logit less mean")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def faithful(curves: Path, output: Path) -> Path:
    """Writes `faithful.webp`."""
    data = io.BytesIO()
    faithful_figure(read_json(curves)).savefig(data, format="png", dpi=130)
    return save_webp(Image.open(data), output / "faithful.webp")


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="an evaluated run of the demo")
    parser.add_argument("--image", default="0/s0000008", help="key of an image with a circuit in its report")
    parser.add_argument("--residual", type=Path, help="a run whose report has features over the layers")
    parser.add_argument("--curves", type=Path, help="what `graph --curves N --output FILE` wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    args = parser.parse_args(words)
    try:
        if find() is None:
            raise UserError("no Chromium on this machine (Debian: apt-get install chromium)")
        written = [] if args.curves is None else [faithful(args.curves, args.output)]
        with tempfile.TemporaryDirectory() as scratch, Browser(Path(scratch) / "profile") as browser:
            written += circuit(browser, read_source(args.run, "test", with_model=True), args.output, args.image)
            if args.residual is not None:
                written.append(evolution(browser, read_source(args.residual, "test", with_model=True), args.output))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()

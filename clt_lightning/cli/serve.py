"""`serve`: a run's pages with the model behind them, in a browser of this machine."""

from __future__ import annotations

import argparse
import json
import signal
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import add_notes
from clt_lightning.core.paths import expand

if TYPE_CHECKING:
    from clt_lightning.report.notes import Notes
    from clt_lightning.report.source import Source

PORT = 8642


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `serve`."""
    add_run_options(parser, "evaluated by `test` before")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port on 127.0.0.1 (default: {PORT}); 0 takes any that is free"
    )
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    parser.add_argument("--split", default="test", help="split that pages and images are of (default: test)")
    parser.add_argument(
        "--images",
        type=int,
        default=256,
        help="images kept at hand, evenly spaced over the split: flips are counted on them, phrases look among them "
        "(default: 256). Memory: 8 x images x tokens per image x width bytes, and their pixels",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="the run's report, whose pages are shown (default: <run>/report; made where it is not there)",
    )
    add_notes(parser)


def run(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C.

    Raises:
        UserError: a run that cannot be opened or was not evaluated, a port that is taken, notes that are none.
    """
    import torch

    from clt_lightning.analysis import open_run
    from clt_lightning.report.existing import report_of
    from clt_lightning.report.notes import check_about, read_notes
    from clt_lightning.report.source import read_source
    from clt_lightning.server import LocalServer, Session, SessionOptions
    from clt_lightning.server.api import connect

    options = SessionOptions(args.split, args.images)
    notes = [read_notes(expand(path, "--notes")) for path in args.notes]
    source = read_source(args.run, args.split, with_model=True)
    check_about(notes, [source.id])
    with LocalServer(args.port) as server:  # a port that is taken is told before the model is read
        server.root = report_of(source, args.report, run_options(args))
        if notes:
            given = _with_notes(server.root, notes, source)
            server.made["data/notes.js"] = lambda: given
        server.made["data/steering.js"] = lambda: _steering(server.made, source)
        server.made["data/steering.js"]()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        opened = open_run(source.run, device, **run_options(args))
        opened.datamodule.prepare_data()
        session = Session(opened, options, source, progress=True)
        connect(server, session)
        print(f"serving {source.title} on {server.url} (Ctrl-C ends it)", flush=True)
        if args.open:
            webbrowser.open(server.url)
        with _ending_well():
            server.serve_forever()
        session.close()
    print("stopped")


def _steering(made: dict[str, Callable[[], bytes]], source: Source) -> bytes:
    """`data/steering.js` with what is saved now, and of each edit its own file: `steer --save` may come later."""
    from clt_lightning.report.folder import data_text
    from clt_lightning.report.pages.steering import fresh

    for name, value in fresh(source).items():
        text = data_text(name, value).encode()
        if name == "steering":
            listed = text
        else:
            made[f"data/{name}.js"] = lambda text=text: text  # type: ignore[misc]
    return listed


@contextmanager
def _ending_well() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how a server ends, no failure."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_notes(folder: Path, notes: list[Notes], source: Source) -> bytes:
    """`data/notes.js` with the notes of files over those that the report was made with."""
    from clt_lightning.report.existing import read_data
    from clt_lightning.report.notes import notes_of

    kept: dict[str, dict[str, Any]] = read_data(folder, "notes")
    clt = source.record.get("transcoder") or {}
    for key, note in notes_of(notes, source.id, clt.get("n_layers") or 0, clt.get("n_features") or 0).items():
        kept[key] = kept.get(key, {}) | note
    return f'CLT.put("notes",{json.dumps(kept, ensure_ascii=False)});\n'.encode()

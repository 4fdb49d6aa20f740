"""`report`: pages and figures of a run, in a folder that opens from the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import add_notes
from clt_lightning.core.paths import expand


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `report`."""
    add_run_options(parser, "evaluated by `test` before", several="a report of each, and a page that compares them")
    parser.add_argument("--split", default="test", help="split whose evaluation is shown (default: test)")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to write (default: <run>/report, of several runs <first run>/comparison); an older report is "
        "replaced",
    )
    parser.add_argument(
        "--features", type=int, help="cards per layer, the most frequent features first (default: all that ever fired)"
    )
    parser.add_argument(
        "--images", type=int, default=24, help="images to study in full, evenly over the classes (default: 24)"
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="KEY",
        help="one more image to study in full, by key; repeatable",
    )
    parser.add_argument(
        "--mistakes", type=int, default=12, help="the model's first mistakes to study in full (default: 12)"
    )
    parser.add_argument(
        "--pages",
        type=int,
        default=2000,
        help="images with a page of their own, at most; those studied in full are the first (default: 2000)",
    )
    parser.add_argument(
        "--circuits",
        type=int,
        metavar="N",
        help="images with a circuit, those of --image first, then mistakes and others in turn (default: 8, as far as "
        "they are made in two minutes; 0: none)",
    )
    parser.add_argument(
        "--queries",
        type=int,
        default=24,
        help="query images of the retrieval page, evenly over the classes (default: 24)",
    )
    parser.add_argument(
        "--query", action="append", default=[], metavar="KEY", help="one more query, by key; repeatable"
    )
    parser.add_argument("--neighbours", type=int, default=8, help="images shown a layer beside a query (default: 8)")
    parser.add_argument("--thumbnail", type=int, default=128, help="side of a thumbnail in pixels (default: 128)")
    add_notes(parser, ", each file for the run that it was made on")
    parser.add_argument(
        "--page",
        action="append",
        default=[],
        metavar="MODULE.PAGE",
        help="dotted path of a page of your own, a clt_lightning.report.page.Page; repeatable",
    )
    parser.add_argument("--no_pictures", action="store_true", help="numbers alone: neither data nor model are read")


def run(args: argparse.Namespace) -> None:
    """Writes the report.

    Raises:
        UserError: nothing to show, data that cannot be read, or a folder that is in the way.
    """
    from clt_lightning.cli.changes import config_changes
    from clt_lightning.report import ReportOptions, build_comparison, build_report
    from clt_lightning.report.notes import read_notes
    from clt_lightning.report.pages import load_page

    options = ReportOptions(
        split=args.split,
        features=args.features,
        images=args.images,
        image_keys=tuple(args.image),
        mistakes=args.mistakes,
        pages=args.pages,
        circuits=args.circuits,
        queries=args.queries,
        query_keys=tuple(args.query),
        neighbours=args.neighbours,
        thumbnail=args.thumbnail,
        pictures=not args.no_pictures,
        notes=tuple(read_notes(expand(path, "--notes")) for path in args.notes),
        own_pages=tuple(load_page(name) for name in args.page),
        opening=run_options(args),
        changes=config_changes,
    )
    if len(args.run) == 1:
        built = build_report(args.run[0], options, args.output, progress=True)
    else:
        built = build_comparison(args.run, options, args.output, progress=True)
    for note in built.notes:
        print(f"note: {note}")
    print(f"{built.files} files, {built.bytes / 1e6:.1f} MB in {built.seconds:.0f} s; open {built.index}")

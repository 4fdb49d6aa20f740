"""`bench`: a run's features beside controls, and beside those of an untrained transcoder."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import add_output, add_pool, add_seed, add_sparse, check_least, file_option
from clt_lightning.cli.second_backbone import FORMS, second_backbone
from clt_lightning.core.files import write_json
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from clt_lightning.analysis.bench import BenchResult, Measure
    from clt_lightning.analysis.bench.estimate import Estimate
    from clt_lightning.analysis.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `bench`."""
    add_run_options(parser)
    parser.add_argument(
        "--index",
        metavar="BACKBONE",
        help=f"measure monosemanticity in the embedding of a second backbone: {FORMS} (default: the run's own "
        "embedding, which the features are made from)",
    )
    add_pool(parser, "the vector that probes read")
    add_sparse(parser, (1, 5, 20), "features that k-sparse probes read (default: 1,5,20)")
    parser.add_argument(
        "--top", type=int, default=16, metavar="N", help="images of each feature for monosemanticity (default: 16)"
    )
    for split, images in (("train", 2000), ("val", 500)):
        parser.add_argument(
            f"--{split}-images",
            type=int,
            default=images,
            metavar="N",
            help=f"images of `{split}`, evenly spaced, for probes (default: {images:,})",
        )
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="images of `test`, evenly spaced, on which everything is measured (default: 1,000)",
    )
    add_seed(parser, "seed of the untrained transcoder, of the controls and of the intervals")
    add_output(parser, "write all numbers there as JSON (docs/results-schema.md)")


def run(args: argparse.Namespace) -> None:
    """Measures, prints and writes.

    Raises:
        UserError: options out of range, no such second backbone, or what `analysis.bench.bench` raises.
    """
    from clt_lightning.analysis import open_run
    from clt_lightning.analysis.bench import BenchOptions, bench

    totals = {"train": args.train_images, "val": args.val_images, "test": args.images}
    check_least(args, train_images=1, val_images=1, images=1, top=2)
    output = file_option(args.output)
    opened = open_run(args.run, **run_options(args))
    embed, index = second_backbone(opened, args.index)
    opened.datamodule.setup("test")
    options = BenchOptions(pool=args.pool, ks=tuple(args.sparse), top=args.top, seed=args.seed)
    splits = {split: partial(_batches, opened, split, limit) for split, limit in totals.items()}
    classes = len(opened.datamodule.classnames or ())
    found = bench(opened.clip, opened.transcoder, splits, classes, options, embed=embed, index=index, totals=totals)
    print("\n".join(lines(found, line_width())))
    if output is not None:
        write_json(output, {"run": str(args.run), "bench": found.to_json()})
        print(f"wrote {output}")


def _batches(opened: Run, split: str, limit: int) -> Iterable[dict[str, Any]]:
    return opened.batches(split, limit)


def lines(found: BenchResult, width: int | None = None) -> list[str]:
    """What the terminal says."""
    l0 = " and ".join(f"{_mean(values):.1f} ({name})" for name, values in found.l0.items())
    images = ", ".join(f"{n:,} {split}" for split, n in found.images.items() if n)
    out = [f"images: {images}; L0 in the mean of the layers: {l0}"]
    for measure in found.measures.values():
        head = f"{measure.title}: {measure.of}; control: {measure.control}"
        out += ["", head, *_table(measure, found.layers, width)]
    out += [
        "",
        "intervals of 95 %, over features or images; untrained: random features with the same L0 (docs/bench.md)",
    ]
    return out + [f"note: {note}" for note in found.notes]


def _table(measure: Measure, layers: list[str], width: int | None) -> list[str]:
    rows = [*measure.trained, measure.mean(measure.trained)]
    untrained = [*measure.untrained, measure.mean(measure.untrained)]
    over = [*(measure.over_untrained(i) for i in range(len(layers))), measure.over_untrained(None)]
    columns = [
        Column(measure.unit, [f"{row.n:,}" for row in rows], 9),
        Column("value", [_number(row.value) for row in rows], 7),
        Column("95 % interval", [_interval(row.value) for row in rows], 16),
        Column("control", [_number(row.control) for row in rows], 9),
        Column("value - control", [_interval(row.difference, "+") for row in rows], 19),
        Column("value", [_number(row.value) for row in untrained], 7, group="untrained"),
        Column("control", [_number(row.control) for row in untrained], 9, group="untrained"),
        Column("over untrained", [_interval(part, "+") for part in over], 19),
    ]
    return lay_out(Column("", [*layers, "mean"], left=True), columns, width)


def _number(part: Estimate, sign: str = "") -> str:
    return "-" if part.value != part.value else f"{part.value:{sign}.3f}"


def _interval(part: Estimate, sign: str = "") -> str:
    ends = part.interval
    return "-" if ends.low != ends.low else f"{ends.low:{sign}.3f} .. {ends.high:{sign}.3f}"


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)

"""`studies`: which features several data sets share, and which are one set's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import check_least, file_option
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import write_json
from clt_lightning.core.paths import expand
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from clt_lightning.analysis.run import Run
    from clt_lightning.analysis.studies import StudyUse

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `studies`."""
    add_run_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="a config, or a run's folder, whose `data` are the sets (class_path: Studies), for a run that was trained "
        "on others (default: those of the run)",
    )
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="of each set (default: test)")
    parser.add_argument("--images", type=int, metavar="N", help="images of each set, evenly spaced (default: all)")
    parser.add_argument(
        "--fdr",
        type=float,
        default=0.05,
        help="share of false discoveries among the features that are said to be used unevenly (default: 0.05)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="write the numbers there as JSON (docs/results-schema.md; default: studies/results.json in the run)",
    )
    parser.add_argument(
        "--arrays", type=Path, help="write there, as npz, the rates, intervals and tests of every feature"
    )


def run(args: argparse.Namespace) -> None:
    """Measures, prints and writes.

    Raises:
        UserError: data that are no several sets, or an option out of its range.
    """
    from clt_lightning.analysis.run import open_run
    from clt_lightning.analysis.studies import study_use
    from clt_lightning.runs.folder import RunFolder

    check_least(args, images=1)
    if not 0 < args.fdr < 1:
        raise UserError(f"--fdr must be between 0 and 1, got {args.fdr:g}")
    output, arrays = (file_option(path, name) for path, name in ((args.output, "--output"), (args.arrays, "--arrays")))
    opened = open_run(args.run, **run_options(args))
    data = _sets(opened, args)
    data.setup("test")
    batches = data.eval_dataloader(args.split, limit=args.images)
    use = study_use(opened.clip, opened.transcoder, batches, data.names, progress=True)
    empty = [name for name, images in zip(use.names, use.images) if not images]
    if empty:
        raise UserError(f"split {args.split!r} of the set {empty[0]} has no image: there is nothing to compare")
    folder = RunFolder(opened.folder)
    print("\n".join([f"{folder.title}, {args.split} split", "", *lines(use, args.fdr, line_width())]))
    output = output or folder.path / "studies" / "results.json"
    write_json(output, {"run": str(args.run), "split": args.split, **use.to_json(args.fdr)})
    print(f"\nwrote {output}")
    if arrays is not None:
        from clt_lightning.core.arrays import write_arrays

        write_arrays(arrays, use.arrays(args.fdr))
        print(f"wrote {arrays}")


def _sets(opened: Run, args: argparse.Namespace) -> Any:
    from clt_lightning.analysis.run import open_data
    from clt_lightning.data import Studies

    data = opened.datamodule
    if args.data is not None:
        data = open_data(expand(args.data, "--data"), allow_pipe=args.allow_pipe, trust_config=args.trust_config)
        data.transform = opened.clip.preprocess
    if not isinstance(data, Studies):
        whose = f"--run {args.run}: its data" if args.data is None else f"--data {args.data}: its data"
        raise UserError(
            f"{whose} are one set ({type(data).__name__}), and there is nothing to compare: name several with "
            "--data FILE, a config whose data.class_path is Studies (docs/data.md), such as configs/data/studies.yaml"
        )
    return data


def lines(use: StudyUse, fdr: float = 0.05, width: int | None = None) -> list[str]:
    """What the terminal says."""
    from clt_lightning.analysis.studies import OWN

    table, layers = use.table(fdr), range(use.l0.shape[1])
    sets = table["sets"]
    columns = [
        Column("images", [f"{entry['images']:,}" for entry in sets], 9),
        Column("L0", [f"{use.l0[i].mean():.2f}" for i in range(len(sets))], 8),
        Column("FVU", [f"{use.fvu[i].mean():.4f}" for i in range(len(sets))], 9),
        Column("threshold", [f"{entry['threshold']:.4g}" for entry in sets], 11),
        Column("own features", [f"{sum(entry['specific']):,}" for entry in sets], 14),
        *(Column(str(n), [f"{entry['fvu'][n]:.4f}" for entry in sets], 8, group="FVU in layer") for n in layers),
    ]
    out = lay_out(Column("set", list(use.names), left=True), columns, width)
    kinds = [Column(kind, [f"{n:,}" for n in table["kinds"][kind]], 10) for kind in table["kinds"]]
    out += ["", "features:", *lay_out(Column("layer", [str(n) for n in layers], left=True), kinds, width), ""]
    for i, name in enumerate(use.names):
        found = use.distinctive(i, _SHOWN, fdr)
        told = ", ".join(f"{entry['layer']}/{entry['feature']} ({_rates(entry['rates'], i)})" for entry in found)
        out.append(f"more often in {name}: {told or 'none'}")
    return [
        *out,
        "",
        "threshold: what codes must exceed for the L0 that all have together",
        "rates: share of images, of the set itself and then of the others; first the features whose use the set tells "
        "best",
        f"uneven: the rates differ (q <= {fdr:g}); specific: and one set has {100 * OWN:.0f} % of the use, as its own "
        "features",
        "shared: no difference was found",
    ]


def _rates(rates: list[float], first: int) -> str:
    others = " ".join(f"{100 * rate:.0f}" for i, rate in enumerate(rates) if i != first)
    return f"{100 * rates[first]:.0f} % : {others} %"

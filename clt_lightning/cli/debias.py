"""`debias`: take a spurious cue out with one edit, beside its controls; or erase a class."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import add_output, add_seed, check_least, file_option, refuse_given
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import write_json
from clt_lightning.core.paths import expand
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from clt_lightning.analysis import Run


_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
#: Options that `--erase` does not read, as they are where none is given
_OF_STUDY: dict[str, Any] = {
    **dict.fromkeys(("data", "unbiased", "way", "edit", "nodes")),
    "collateral": [],
    "head": "probe",
    "sizes": _SIZES,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `debias`."""
    add_run_options(parser, several="the same edits with the features of each, all on one backbone")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="CONFIG",
        help="config whose data have classes and groups (a file with a table data:); default: the first run's own",
    )
    parser.add_argument(
        "--unbiased",
        type=Path,
        metavar="CONFIG",
        help="config of data in which the cue does not go with the class; no labels of groups are read. For the way "
        "coactivation, and for a head that has never seen the cue",
    )
    parser.add_argument(
        "--collateral",
        type=Path,
        action="append",
        default=[],
        metavar="CONFIG",
        help="config of other data, whose zero-shot accuracy is measured under every edit; repeatable",
    )
    parser.add_argument(
        "--head",
        choices=("probe", "zero_shot"),
        default="probe",
        help="the biased predictor: a linear probe of the training split (default), or prompts",
    )
    parser.add_argument(
        "--way",
        action="append",
        choices=("circuits", "codes", "coactivation"),
        help="how features that carry the cue are found; repeatable: circuits or codes (with labels of groups), "
        "coactivation (without; needs --unbiased); default: all",
    )
    parser.add_argument(
        "--edit",
        action="append",
        choices=("regress", "ablate"),
        help="what is done with these features; repeatable: regress (what the embedding shares with a sum of their "
        "codes is taken out of it), ablate (codes at their mean in the running model); default: both",
    )
    parser.add_argument(
        "--nodes", type=Path, metavar="FILE", help="a set of nodes (JSON) whose features are edited, at all positions"
    )
    parser.add_argument(
        "--sizes",
        type=_numbers,
        default=_SIZES,
        metavar="N,N,...",
        help="how many features an edit may have; val and a part of train choose (default: 1,2,4,...,128)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=512,
        help="training images behind means and influence; with --erase also the test images of other classes "
        "(default: 512)",
    )
    parser.add_argument(
        "--group-images",
        type=int,
        default=128,
        help="training images of each group behind circuits and the choice of sizes (default: 128)",
    )
    parser.add_argument(
        "--code-images",
        type=int,
        default=4000,
        help="training images, and unbiased ones, whose codes are compared to find what carries the cue; with labels "
        "of groups the same share of each group, or all that it has (default: 4000)",
    )
    parser.add_argument(
        "--random", type=int, default=3, help="draws of random features of equal activity (default: 3; 0: none)"
    )
    parser.add_argument(
        "--erase",
        metavar="CLASS",
        help="instead: put more and more of the features behind a class to their mean, by the run's own data and head",
    )
    add_seed(parser, "of all that is drawn")
    add_output(parser, "write everything there as JSON (docs/results-schema.md)")


def run(args: argparse.Namespace) -> None:
    """Measures and prints.

    Raises:
        UserError: labels, groups or classes that are missing, or files that are none.
    """
    from clt_lightning.analysis import open_run

    check_least(args, images=1, group_images=1, code_images=1, random=0)
    args.output = file_option(args.output)
    if args.erase is not None:
        _refuse_beside_erase(args)
    for name in ("data", "unbiased", "nodes"):
        if (path := getattr(args, name)) is not None:
            setattr(args, name, Path(expand(path, f"--{name}")))
    args.collateral = [Path(expand(path, "--collateral")) for path in args.collateral]
    opened = [open_run(folder, **run_options(args)) for folder in args.run]
    names = [run.folder.parent.name for run in opened]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in args.run]
    runs = dict(zip(names, opened))
    if len(runs) < len(opened):
        raise UserError("--run names a run twice")
    record = _erase(args, next(iter(runs.values()))) if args.erase is not None else _debias(args, runs)
    if args.output is not None:
        write_json(args.output, {"runs": [str(folder) for folder in args.run], **record}, indent=None)
        print(f"wrote {args.output}")


def _refuse_beside_erase(args: argparse.Namespace) -> None:
    """`--erase` is of one run, its own data and its own head."""
    refuse_given(args, _OF_STUDY, "is of no use with --erase, which takes the run's own data and head: leave it out")
    if len(args.run) > 1:
        raise UserError(f"--erase is of one run, and --run names {len(args.run)}")


def _debias(args: argparse.Namespace, runs: dict[str, Run]) -> dict[str, Any]:
    from clt_lightning.analysis.debias import DebiasOptions, debias
    from clt_lightning.analysis.debias.table import debias_lines
    from clt_lightning.analysis.run import open_data

    allowed = {"allow_pipe": args.allow_pipe, "trust_config": args.trust_config}
    data = None if args.data is None else open_data(args.data, **allowed)
    unbiased = None if args.unbiased is None else open_data(args.unbiased, **allowed)
    collateral = {path.stem: open_data(path, **allowed) for path in args.collateral}
    if len(collateral) < len(args.collateral):
        raise UserError("--collateral: two files have one name; results are named after it")
    options = DebiasOptions(
        head=args.head,
        ways=tuple(dict.fromkeys(args.way or ("circuits", "codes", "coactivation"))),
        edits=tuple(dict.fromkeys(args.edit or ("regress", "ablate"))),
        sizes=args.sizes,
        group_images=args.group_images,
        images=args.images,
        code_images=args.code_images,
        random=args.random,
        seed=args.seed,
        progress=True,
    )
    nodes = () if args.nodes is None else _features(args.nodes)
    found = debias(runs, data, unbiased, collateral, nodes, options)
    print(f"\nhead: {found.head}; {sum(found.counts):,} test images, 95 % intervals over images\n")
    print("\n".join(debias_lines(found, line_width())))
    for note in found.notes:
        print(f"note: {note}")
    return found.to_json()


def _features(path: Path) -> tuple[tuple[int, int], ...]:
    from clt_lightning.analysis.circuits import NodeSet

    places = []
    for edit in NodeSet.from_json(path):
        if edit.kind != "feature" or edit.feature is None:
            raise UserError(f"{path}: {edit}: features alone are edited")
        places.append((edit.layer, edit.feature))
    return tuple(dict.fromkeys(places))


def _erase(args: argparse.Namespace, opened: Run) -> dict[str, Any]:
    from clt_lightning.analysis.debias import erase
    from clt_lightning.analysis.debias.table import erase_lines

    found = erase(
        opened, args.erase, images=args.group_images, others=args.images, random=args.random, seed=args.seed,
        progress=True,
    )  # fmt: skip
    print(f"{found.name}: {found.images[0]:,} test images of it, {found.images[1]:,} of other classes\n")
    print("\n".join(erase_lines(found, line_width())))
    return found.to_json()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, got {text!r}") from None
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"an edit has at least one feature, got {found[0]}")
    return found

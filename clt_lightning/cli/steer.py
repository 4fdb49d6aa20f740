"""`steer`: set, scale or move features, and see which classes the model names then."""

from __future__ import annotations

import argparse
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.amplify import add_amplify_options, refuse_amplify_options, run_amplify
from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import add_output, check_least, file_option
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_json
from clt_lightning.core.progress import Progress
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from clt_lightning.analysis import Edit, Run, SteeringResult
    from clt_lightning.analysis.circuits.nodeset import NodeSet

#: Images a batch where they are named by key
_BATCH = 32
#: Edits that are named in the first line
_NAMED = 8
#: Changes of a mean probability that are shown at least, as a share: what the table's two decimals can tell
_SHOWN = 5e-5
#: Endings of --picture
_PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `steer`."""
    add_run_options(parser)
    for kind, what in (
        ("set", "make the code of a feature VALUE"),
        ("scale", "multiply the code by VALUE; 0 takes the feature away"),
        ("add", "add VALUE to the code"),
    ):
        parser.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar="LAYER/FEATURE=VALUE",
            help=f"{what}; LAYER/FEATURE@POSITION=VALUE at one token of each image; repeatable",
        )
    parser.add_argument(
        "--nodes",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="all features of a file of nodes (NodeSet.to_json), as it says what is done with them; repeatable",
    )
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--scale-nodes", type=float, metavar="VALUE", help="multiply the codes of --nodes by this")
    whole.add_argument("--set-nodes", type=float, metavar="VALUE", help="set the codes of --nodes to this")
    parser.add_argument(
        "--tokens", choices=("all", "cls", "register", "patch"), default="all", help="at which positions (default: all)"
    )
    parser.add_argument(
        "--base",
        choices=("original", "replaced"),
        default="original",
        help="original: CLIP's own MLPs, plus the change of what the features write (default); "
        "replaced: the transcoder in the place of all MLPs",
    )
    parser.add_argument("--split", default="test", help="split that images are taken from (default: test)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--images",
        type=int,
        help="that many, evenly spaced over the split (default: 256; of --amplify all)",
    )
    which.add_argument("--image", action="append", default=[], metavar="KEY", help="these instead, by key; repeatable")
    parser.add_argument("--classes", type=int, default=5, help="classes shown that gain and lose most (default: 5)")
    add_output(parser, "write everything there as JSON (docs/results-schema.md)")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw what changed: classes that gain and lose, and the images named otherwise, before and after (.png, "
        ".svg, .pdf)",
    )
    parser.add_argument(
        "--save",
        metavar="NAME",
        help="keep the edits in the run's folder with what came of them, for the report's page Steering",
    )
    add_amplify_options(parser)


def run(args: argparse.Namespace) -> None:
    """Steers and prints a table.

    Raises:
        UserError: no edit, a feature, image or split that does not exist, or data without class names.
    """
    from clt_lightning.analysis import Edit, open_run, steer
    from clt_lightning.analysis.steering import SKIP_DOUBT
    from clt_lightning.report.saved_edits import Flips, check_name, save_edit, steering_record

    check_least(args, images=1, classes=1)
    args.output = file_option(args.output)
    edits = [Edit.parse(kind, text) for kind in ("set", "scale", "add") for text in getattr(args, kind)]
    if args.amplify is not None:
        if edits or args.nodes:
            raise UserError("--amplify moves all features together: give it, or edits of single features, not both")
        if args.save or args.picture:
            raise UserError("--save and --picture show edits of features; --amplify writes with --output alone")
        run_amplify(args)
        return
    picture = None if args.picture is None else _picture_file(args.picture)
    if args.save is not None:
        check_name(args.save)
    refuse_amplify_options(args)
    sets = _sets(args)
    if not edits and not sets:
        raise UserError(
            "nothing to do: give at least one of --set, --scale, --add LAYER/FEATURE=VALUE, --nodes FILE, or --amplify"
        )
    images = 256 if args.images is None else args.images
    opened = open_run(args.run, **run_options(args))
    for nodes in sets:
        nodes.check(opened.transcoder.n_layers, opened.transcoder.n_features, opened.clip.n_positions)
        edits += Edit.of_nodes(nodes)
    head = opened.require_head("nothing to compare")
    flips = Flips(opened.pixels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", re.escape(SKIP_DOUBT))  # said below, beside the numbers
        found = steer(
            opened.clip,
            opened.transcoder,
            _counted(_batches(opened, args.split, images, args.image), len(args.image) or images),
            edits,
            head,
            opened.datamodule.classnames,
            args.tokens,
            args.base,
            flips,
        )
    said = "; ".join(str(edit) for edit in edits[:_NAMED])
    more = f" and {len(edits) - _NAMED} more" if len(edits) > _NAMED else ""
    print(f"{said}{more} {where(edits, args.tokens, args.base)}")
    _say_skip(opened)
    show(found, args.classes)
    if args.output is not None:
        record = {
            "run": str(args.run),
            "split": args.split,
            "tokens": args.tokens,
            "base": args.base,
            "nodes": [nodes.name for nodes in sets],
            **found.to_json(edits),
        }
        write_json(args.output, record, indent=None)
        print(f"wrote {args.output}")
    if picture is None and args.save is None:
        return
    record = steering_record(
        opened.folder,
        found,
        edits,
        flips,
        name=args.save or "",
        split=args.split,
        tokens=args.tokens,
        base=args.base,
        nodes=[nodes.name for nodes in sets],
        keys=args.image,
    )
    if picture is not None:
        _draw(picture, record)
        print(f"wrote {args.picture}")
    if args.save is not None:
        print(f"saved {save_edit(opened.folder, record)}; {_shown_by(opened.folder)}")


def where(edits: Sequence[Edit], tokens: str, base: str) -> str:
    """At which tokens edits act: those with a position say it themselves."""
    own = sum(edit.position is not None for edit in edits)
    if own == len(edits):
        return f"in the {base} model"
    return f"at {tokens} tokens{', or where it is said,' if own else ''} of the {base} model"


def _picture_file(path: Path) -> Path:
    if path.suffix.lower() not in _PICTURES:
        raise UserError(f"--picture {path}: name a file that ends in {', '.join(_PICTURES)}")
    found = file_option(path, "--picture")
    assert found is not None
    return found


def _draw(path: Path, record: dict[str, Any]) -> None:
    from clt_lightning.core.files import whole_file
    from clt_lightning.report.figures.steering import steering_figure
    from clt_lightning.report.figures.style import house_style

    figure = steering_figure(record)
    with whole_file(path) as file, house_style():
        figure.savefig(file, format=path.suffix[1:].lower())


def _shown_by(run: Path) -> str:
    """How the page is made that shows a saved edit: a report needs an evaluation."""
    from clt_lightning.core.files import read_json

    report = f"`python -m clt_lightning report --run {run}` shows it"
    results = run / "results.json"
    if results.is_file() and read_json(results).get("evaluation"):
        return report
    return f"after `python -m clt_lightning test --run {run}`, {report}"


def _sets(args: argparse.Namespace) -> list[NodeSet]:
    """The sets of nodes of files, with what the command line says is done to them."""
    from clt_lightning.analysis.circuits.nodeset import NodeSet
    from clt_lightning.core.paths import expand

    sets = [NodeSet.from_json(expand(str(path), "--nodes")) for path in args.nodes]
    value = args.scale_nodes if args.set_nodes is None else args.set_nodes
    if value is None:
        return sets
    if not sets:
        raise UserError("--scale-nodes and --set-nodes are for the features of --nodes FILE: there is none")
    return [nodes.with_action("scale" if args.set_nodes is None else "set", value) for nodes in sets]


def _say_skip(opened: Run) -> None:
    """What a linear skip means for the numbers, and how much it carries where the run was tested."""
    from clt_lightning.analysis.steering import SKIP_DOUBT

    if not opened.transcoder.skip:
        return
    print(textwrap.fill(f"note: {SKIP_DOUBT}", line_width(), subsequent_indent="  "))
    results = opened.folder / "results.json"
    for evaluation in (read_json(results) if results.exists() else {}).get("evaluation", {}).values():
        shares = (evaluation.get("shares") or {}).get("features") or {}
        mean = (shares.get("all") or {}).get("mean")
        if mean is not None:
            print(f"the features make {mean:.1%} of the centred reconstruction: an edit moves a part of that part")
            return


def _batches(opened: Run, split: str, limit: int, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    if not keys:
        yield from opened.batches(split, limit=limit)
        return
    import torch

    samples = opened.samples(keys, split)
    for start in range(0, len(keys), _BATCH):
        part = list(keys[start : start + _BATCH])
        images, labels = zip(*(samples[key] for key in part))
        yield {"image": torch.stack(images), "label": torch.tensor(labels), "key": part}


def _counted(batches: Iterator[dict[str, Any]], images: int) -> Iterator[dict[str, Any]]:
    with Progress("steering", images, "images") as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch["image"]))


def show(found: SteeringResult, n: int) -> None:
    """Prints what changed."""
    top1, difference, intervals = found.top1(), found.top1_difference(), found.change_intervals()
    accuracy = ""
    if top1 is not None and difference is not None:
        span = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f} points"
        accuracy = f"; top-1 {top1[0]:.1%} before, {top1[1]:.1%} after ({span})"
    print(f"{len(found.keys)} images, {found.changed} of another most probable class{accuracy}\n")
    change, before, after = found.mean_change, found.before.mean(0), found.after.mean(0)
    order = change.argsort(descending=True).tolist()
    n = min(n, len(order))
    gain = [c for c in order[:n] if change[c] >= _SHOWN]
    loss = [c for c in order[::-1][:n] if change[c] <= -_SHOWN]
    classes = gain + loss[::-1]
    spans = [f"{100 * intervals[c].low:+.2f} .. {100 * intervals[c].high:+.2f}" for c in classes]
    columns = [
        Column("before", [f"{before[c]:.2%}" for c in classes], 9),
        Column("after", [f"{after[c]:.2%}" for c in classes], 9),
        Column("change", [f"{100 * change[c]:+.2f}p" for c in classes], 10),
        Column("95 % interval", spans, 18),
    ]
    names = Column("mean probability of", [found.classnames[c] for c in classes], 24, left=True)
    if classes:
        print("\n".join(lay_out(names, columns, line_width())))
    else:
        print(f"no class's mean probability changes by {100 * _SHOWN:.2f} points")
    if len(found.keys) > 8:
        return
    print()
    for row, key in enumerate(found.keys):
        a, b = int(found.before[row].argmax()), int(found.after[row].argmax())
        print(
            f"{key}: {found.classnames[a]} {found.before[row, a]:.1%} -> "
            f"{found.classnames[b]} {found.after[row, b]:.1%}"
        )

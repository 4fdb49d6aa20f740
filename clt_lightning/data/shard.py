"""The `shard` command: its options, and from a source's splits to finished folders."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_errors, read_text, write_text
from clt_lightning.core.paths import expand
from clt_lightning.data.sets import sharders
from clt_lightning.data.sharding.held_out import VAL_FRACTION, fraction, with_val
from clt_lightning.data.sharding.sharder import SPLITS, Sharder, load_sharder
from clt_lightning.data.sharding.writer import GO_ON, Item, Limits, check_free, write_split


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str] = ()) -> None:
    """Adds the sets and their options to the `shard` command's parser.

    Args:
        parser: gets them.
        words: what stands behind `shard`. Where the first has a dot, it names a set that is no part of the package.

    Raises:
        UserError: there is no such set.
    """
    known = dict(sharders())
    for asked in words[:1]:
        if "." in asked:
            known[asked] = load_sharder(asked)
    sets = parser.add_subparsers(dest="dataset", required=True, metavar="|".join([*sharders(), "PACKAGE.MODULE"]))
    for name, sharder in known.items():
        sub = sets.add_parser(
            name,
            help=sharder.source.split(":")[0],
            description=f"Write WebDataset tars in the public layout. Source: {sharder.source}. Nothing is downloaded. "
            "An interrupted run goes on where it stopped when it is called again with the same options.",
        )
        sub.set_defaults(sharder=sharder)
        sub.add_argument("--source", required=True, help=sharder.source)
        sub.add_argument("--output", required=True, help="folder for the tars: <output>/train/0.tar …")
        sub.add_argument("--max-samples-per-shard", type=_positive, default=10_000, help="default: %(default)s")
        sub.add_argument("--max-bytes-per-shard", type=_positive, default=1_000_000_000, help="default: %(default)s")
        sub.add_argument(
            "--shuffle-seed",
            type=int,
            default=0,
            help="seed of the order in the training tars; below 0 keeps the source's order (default: %(default)s)",
        )
        sub.add_argument("--limit", type=_positive, help="only this many samples of each split")
        sub.add_argument(
            "--val-fraction",
            type=fraction,
            help="share of the training samples that becomes the val split, the same of every class, chosen by a hash "
            f"of their names; 0 makes none (default: {VAL_FRACTION}, where the source has no val split)",
        )
        try:
            sharder.add_options(sub)
        except argparse.ArgumentError as error:  # an option that is there already
            raise UserError(f"shard {name}: {error}") from error


def run(args: argparse.Namespace) -> int:
    """Writes the tars; returns the exit code.

    Raises:
        UserError: a source is missing or broken, or the output cannot be written.
    """
    source, output = _place(args.source, "--source"), _place(args.output, "--output")
    sharder: Sharder = args.sharder
    if not source.exists():
        raise UserError(f"--source {source} does not exist; it must be: {sharder.source}")
    _require_writable(output)
    if sharder.reads_all and output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output {output} lies in --source {source}: name a folder outside of it")
    with read_errors(source):
        found = sharder.open(source, args)
    strange = sorted(set(found.splits) - set(SPLITS))
    if strange or not found.splits:
        raise UserError(f"shard {args.dataset}: its splits are {', '.join(strange) or 'none'}: use {', '.join(SPLITS)}")
    splits = with_val(found.splits, args.val_fraction)
    texts = {output / name: "".join(f"{line}\n" for line in lines) for name, lines in found.texts.items()}
    for path, text in texts.items():
        if path.exists() and read_text(path) != text:
            raise UserError(f"{path} already says something else, of other tars: use another --output")
    for split in splits:
        check_free(output / split)

    limits = Limits(args.max_samples_per_shard, args.max_bytes_per_shard)
    for split, items in splits.items():
        chosen = _ordered(items, args.shuffle_seed if split == "train" else -1, args.limit)
        settings = {"dataset": sharder.name, "shuffle_seed": args.shuffle_seed, **found.settings}
        if split in ("train", "val") and "val" in splits and "val" not in found.splits:
            settings["val_fraction"] = VAL_FRACTION if args.val_fraction is None else args.val_fraction
        record = write_split(output / split, chosen, limits=limits, settings=settings)
        print(f"{output / split}: {record['samples']:,} samples in {len(record['shards'])} shards", file=sys.stderr)
    for path, text in texts.items():
        write_text(path, text, GO_ON)
    return 0


def _place(text: str, option: str) -> Path:
    if not text:
        raise UserError(f"{option} is empty: name a folder")
    return Path(expand(text, option))


def _require_writable(output: Path) -> None:
    """What the file system would refuse after a long listing is said before it."""
    above = output
    try:
        while not above.exists():
            above = above.parent
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}: name another folder") from error
    if not above.is_dir():
        raise UserError(f"--output {output}: {above} is a file: name a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"--output {output}: {above} cannot be written (no permission, or read-only): name another folder"
        )


def _ordered(items: Sequence[Item], seed: int, limit: int | None) -> list[Item]:
    order = list(items)
    if seed >= 0:  # sources are sorted by class: a shard must hold a mixture
        random.Random(seed).shuffle(order)
    elif limit is not None and limit < len(order):
        return [order[i * len(order) // limit] for i in range(limit)]
    return order[:limit]


def _positive(text: str) -> int:
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number, 1 or more, but is {text}")
    return value

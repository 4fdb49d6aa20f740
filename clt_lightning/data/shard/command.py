"""The `shard` command: its options, and from a source's splits to finished folders."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.data.shard.sources import SourceSet
from clt_lightning.data.shard.writer import Item, Limits, write_split, write_text

_KINDS = {
    "cifar100": "CIFAR-100: cifar-100-python.tar.gz, or a folder that holds it or its extracted files",
    "coco": "COCO 2017: a folder with train2017.zip and val2017.zip (or folders train2017/ and val2017/) and "
    "annotations_trainval2017.zip (or annotations/)",
    "imagenet100": "100 classes of ImageNet: a folder with ILSVRC2012_img_train.tar (or train/<wnid>/), "
    "ILSVRC2012_img_val.tar (or val/<wnid>/) and, for a flat val, ILSVRC2012_devkit_t12.tar.gz",
    "folder": "own images: <split>/<class>/*, <class>/* or plain images; a .txt beside an image holds its captions",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sets and their options to the `shard` command's parser."""
    sets = parser.add_subparsers(dest="dataset", required=True, metavar="|".join(_KINDS))
    for kind, text in _KINDS.items():
        sub = sets.add_parser(
            kind,
            help=text.split(":")[0],
            description=f"Write WebDataset tars in the public layout. Source: {text}. Nothing is downloaded. An "
            "interrupted run goes on where it stopped when it is called again with the same options.",
        )
        sub.add_argument("--source", required=True, type=Path, help=text)
        sub.add_argument("--output", required=True, type=Path, help="folder for the tars: <output>/train/0.tar …")
        sub.add_argument("--max-samples-per-shard", type=_positive, default=10_000, help="default: %(default)s")
        sub.add_argument("--max-bytes-per-shard", type=_positive, default=1_000_000_000, help="default: %(default)s")
        sub.add_argument(
            "--shuffle-seed",
            type=int,
            default=0,
            help="seed of the order in the training tars; below 0 keeps the source's order (default: %(default)s)",
        )
        sub.add_argument("--limit", type=_positive, help="only this many samples of each split")
        if kind == "imagenet100":
            sub.add_argument(
                "--class-list",
                default="cmc",
                help="'cmc' (the 100 classes of Contrastive Multiview Coding) or a file with one WordNet id a line "
                "(default: %(default)s)",
            )
        if kind == "folder":
            sub.add_argument(
                "--test-fraction",
                type=_fraction,
                default=0.0,
                help="share of the images that becomes the test split, where the source has no splits "
                "(default: %(default)s)",
            )


def run(args: argparse.Namespace) -> int:
    """Writes the tars; returns the exit code.

    Raises:
        UserError: a source is missing or broken, or the output cannot be written.
    """
    if not args.source.exists():
        raise UserError(f"--source {args.source} does not exist; it must be: {_KINDS[args.dataset]}")
    found = _open(args)
    limits = Limits(args.max_samples_per_shard, args.max_bytes_per_shard)
    for split, items in found.splits.items():
        chosen = _ordered(items, args.shuffle_seed if split == "train" else -1, args.limit)
        settings = {"dataset": args.dataset, "shuffle_seed": args.shuffle_seed, **found.settings}
        record = write_split(args.output / split, chosen, limits=limits, settings=settings)
        print(
            f"{args.output / split}: {record['samples']:,} samples in {len(record['shards'])} shards", file=sys.stderr
        )
    for name, lines in found.texts.items():
        write_text(args.output / name, "".join(f"{line}\n" for line in lines))
    return 0


def _open(args: argparse.Namespace) -> SourceSet:
    if args.dataset == "cifar100":
        from clt_lightning.data.shard.cifar100 import open_cifar100

        return open_cifar100(args.source)
    if args.dataset == "coco":
        from clt_lightning.data.shard.coco import open_coco

        return open_coco(args.source)
    if args.dataset == "imagenet100":
        from clt_lightning.data.classlist import load_class_list
        from clt_lightning.data.shard.imagenet import open_imagenet

        return open_imagenet(args.source, load_class_list(args.class_list))
    from clt_lightning.data.shard.folder import open_folder

    return open_folder(args.source, args.test_fraction)


def _ordered(items: Sequence[Item], seed: int, limit: int | None) -> list[Item]:
    order = list(items)
    if seed >= 0:  # sources are sorted by class: a shard must hold a mixture
        random.Random(seed).shuffle(order)
    elif limit is not None and limit < len(order):
        return [order[i * len(order) // limit] for i in range(limit)]
    return order[:limit]


def _positive(text: str) -> int:
    value = int(float(text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but is {text}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, but is {text}")
    return value

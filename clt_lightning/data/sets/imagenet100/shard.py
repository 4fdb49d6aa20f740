"""ImageNet-1k's official archives or folders, cut down to the classes of a list."""

from __future__ import annotations

import argparse
import csv
import io
import tarfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import decode_text, lines_of, read_lines, read_text
from clt_lightning.core.paths import expand
from clt_lightning.core.progress import track
from clt_lightning.data.lists import lines
from clt_lightning.data.sets.imagenet100.classlist import ClassList, load_class_list
from clt_lightning.data.sets.imagenet100.matfile import read_struct
from clt_lightning.data.sharding.sharder import Sharder, SourceSet
from clt_lightning.data.sharding.sources import (
    Tree,
    first_existing,
    needed,
    open_tree,
    refuse_empty,
    suffix_of,
    tar_members,
    tree_of,
)
from clt_lightning.data.sharding.writer import Item

_TRAIN, _VAL, _DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_KAGGLE = Path("ILSVRC/Data/CLS-LOC")
_SITE = "an official file, from https://image-net.org/download after registering"


def open_imagenet(source: Path, chosen: ClassList) -> SourceSet:
    """The list's classes: training images as `train`, validation images as `test`, JPEGs copied as they are.

    Args:
        source: folder with the training images (`ILSVRC2012_img_train.tar`, `train/<wnid>/` or `train/<wnid>.tar`) and
            the validation images (`ILSVRC2012_img_val.tar` or `val/`, in folders by WordNet id or flat). A flat val
            needs its labels: `ILSVRC2012_devkit_t12.tar.gz`, `LOC_val_solution.csv`, or
            `imagenet_2012_validation_synset_labels.txt`. Kaggle's `ILSVRC/Data/CLS-LOC` is found too.
        chosen: which classes.

    Raises:
        UserError: a file is missing or damaged, or a class of the list has no image.
    """
    label = {wnid: i for i, wnid in enumerate(chosen.wnids)}
    splits = {"train": _train(source, label), "test": _val(source, label)}
    texts = {
        "classnames.txt": chosen.names,
        "wnids.txt": chosen.wnids,
        "zeroshot_classification_templates.txt": lines("templates_imagenet80"),
    }
    return SourceSet(splits, texts, {"class_list": chosen.name, "class_list_sha256": chosen.sha256})


def _train(source: Path, label: dict[str, int]) -> list[Item]:
    found = needed(
        first_existing(source, [_TRAIN, str(_KAGGLE / "train"), "train"]) or (source if _has_wnids(source) else None),
        source,
        f"{_TRAIN} and no folder train/<wnid>/ ({_SITE})",
    )
    items = _nested(found, label) if found.is_file() else _class_folders(found, label)
    missing = sorted(set(label) - {item.name.split("/")[0] for item in items})
    if missing:
        raise UserError(f"{found} has no image of {len(missing)} classes of the list, the first is {missing[0]}")
    return items


def _nested(path: Path, label: dict[str, int]) -> list[Item]:
    """A tar of one tar a class."""
    try:
        inner = {Path(n).stem: span for n, span in tar_members(path).items() if Path(n).stem in label}
        items: list[Item] = []
        for wnid, (base, size) in track(sorted(inner.items()), f"listing {path.name}", unit="classes"):
            items += _tree_items(tree_of(path, tar_members(path, base, size)), wnid, label[wnid])
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from error
    return items


def _class_folders(folder: Path, label: dict[str, int]) -> list[Item]:
    items: list[Item] = []
    for wnid in track(sorted(label), f"listing {folder}", unit="classes"):
        for place in (folder / wnid, folder / f"{wnid}.tar"):
            if place.exists():
                items += _tree_items(open_tree(place), wnid, label[wnid])
    return items


def _tree_items(tree: Tree, wnid: str, label: int) -> list[Item]:
    images = tree.images
    refuse_empty(tree, images)
    return [_item(tree, name, f"{wnid}/{name}", wnid, label) for name in images]


def _item(tree: Tree, name: str, shown: str, wnid: str, label: int) -> Item:
    return Item(shown, partial(_read_parts, tree, name, label), group=wnid, stamp=str(tree.sizes[name]))


def _val(source: Path, label: dict[str, int]) -> list[Item]:
    found = needed(
        first_existing(source, [_VAL, str(_KAGGLE / "val"), "val"]),
        source,
        f"{_VAL} and no folder val/ ({_SITE})",
    )
    if found.is_dir() and _has_wnids(found):
        return _class_folders(found, label)
    tree = open_tree(found)
    truth = _val_truth(source)
    refuse_empty(tree, tree.images)
    items = []
    for name in tree.images:
        stem = Path(name).stem
        if stem not in truth:
            raise UserError(f"{found}: there is no label for {name} (expected names like ILSVRC2012_val_00000001.JPEG)")
        if truth[stem] in label:
            items.append(_item(tree, name, name, truth[stem], label[truth[stem]]))
    return items


def _val_truth(source: Path) -> dict[str, str]:
    """WordNet id by file stem, from whichever of the public label files is there."""
    table = first_existing(source, ["LOC_val_solution.csv", "ILSVRC/LOC_val_solution.csv"])
    if table is not None:
        return _solutions(table)
    synsets = first_existing(source, ["imagenet_2012_validation_synset_labels.txt"])
    if synsets is not None:
        return _numbered(read_lines(synsets))
    devkit = needed(
        first_existing(source, [_DEVKIT, "ILSVRC2012_devkit_t12"]),
        source,
        f"{_DEVKIT} ({_SITE}), LOC_val_solution.csv or imagenet_2012_validation_synset_labels.txt, one of which must "
        "tell the labels of the flat validation images",
    )
    numbers, meta = _devkit_files(devkit)
    truth = lines_of(decode_text(numbers, f"{devkit}: {_TRUTH}"), f"{devkit}: {_TRUTH}")
    try:
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in read_struct(meta, "synsets")}
        return _numbered([wnids[int(n)] for n in truth])
    except UserError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{devkit}: the validation ground truth and meta.mat do not fit: {error}") from error


def _solutions(table: Path) -> dict[str, str]:
    """Kaggle's table: image and, first of its boxes, WordNet id."""
    found = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(read_text(table))), 2):
        image, boxes = row.get("ImageId"), (row.get("PredictionString") or "").split()
        if not image or not boxes:
            raise UserError(f"{table}, line {number}: expected ImageId,PredictionString (`ILSVRC2012_val_00000001,n…`)")
        found[image] = boxes[0]
    return found


def _numbered(wnids: Sequence[str]) -> dict[str, str]:
    return {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(wnids, 1)}


def _devkit_files(devkit: Path) -> tuple[bytes, bytes]:
    wanted = (_TRUTH, "meta.mat")
    try:
        if devkit.is_dir():
            return tuple((devkit / "data" / name).read_bytes() for name in wanted)  # type: ignore[return-value]
        found: dict[str, bytes] = {}
        with tarfile.open(devkit) as tar:
            for member in tar:
                if Path(member.name).name in wanted and (file := tar.extractfile(member)) is not None:
                    found[Path(member.name).name] = file.read()
        return found[wanted[0]], found[wanted[1]]
    except (tarfile.TarError, EOFError, OSError, KeyError, zlib.error) as error:
        raise UserError(f"{devkit} is damaged or not the official devkit ({error})") from error


def _has_wnids(folder: Path) -> bool:
    return folder.is_dir() and any(
        len(p.stem) == 9 and p.stem[0] == "n" and p.stem[1:].isdigit() and (p.is_dir() or p.suffix == ".tar")
        for p in folder.iterdir()
    )


def _read_parts(tree: Tree, name: str, label: int) -> dict[str, bytes]:
    return {suffix_of(name): tree.read(name), "cls": str(label).encode()}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class-list",
        default="cmc",
        help="'cmc' (the 100 classes of Contrastive Multiview Coding) or a file with one WordNet id a line "
        "(default: %(default)s)",
    )


def _open(source: Path, options: argparse.Namespace) -> SourceSet:
    return open_imagenet(source, load_class_list(expand(options.class_list, "--class-list")))


SHARDER = Sharder(
    "imagenet100",
    "100 classes of ImageNet: a folder with ILSVRC2012_img_train.tar (or train/<wnid>/), "
    "ILSVRC2012_img_val.tar (or val/<wnid>/) and, for a flat val, ILSVRC2012_devkit_t12.tar.gz",
    _open,
    _add_options,
)

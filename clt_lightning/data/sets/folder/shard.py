"""Own images: `<split>/<class>/…`, `<class>/…`, or plain images in one folder."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal
from unicodedata import category

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import decode_text
from clt_lightning.data.sharding.captions import beside, captions_of
from clt_lightning.data.sharding.held_out import fraction, with_held_out
from clt_lightning.data.sharding.sharder import Sharder, SourceSet
from clt_lightning.data.sharding.sources import (
    Tree,
    empty_images,
    ending,
    open_tree,
    refuse_empty,
    suffix_of,
)
from clt_lightning.data.sharding.writer import Item

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHOWN = 20


def open_folder(source: Path, test_fraction: float = 0.0, on_error: Literal["raise", "skip"] = "raise") -> SourceSet:
    """Images copied as they are; a class is the first folder below the split, as torchvision's ImageFolder has it.

    Captions come from a `.txt` beside an image and from `metadata.csv` or `metadata.jsonl`.

    Args:
        source: the folder (or a zip or tar of it).
        test_fraction: share of the training images that becomes the test split, where the source has none.
        on_error: `raise` refuses empty images, `skip` leaves them out and says so.

    Raises:
        UserError: there are no images, some are empty, some lie in class folders and some do not, or the names of
            splits or classes leave open what is meant.
    """
    tree = open_tree(source)
    images = tree.images
    if on_error == "raise":
        refuse_empty(tree, images, "get them again, take them out, or leave them out with --on-error skip")
    empty = set(empty_images(tree, images))
    if empty:
        print(f"{source}: {len(empty):,} empty images are left out, the first is {min(empty)}", file=sys.stderr)
        images = [name for name in images if name not in empty]
    if not images:
        raise UserError(f"{source} holds no image ({_others(tree, set()) or 'it is empty'})")
    said, tables = captions_of(tree)
    texts = {name: text for name in images if (text := beside(tree, name)) is not None}
    left = _others(tree, tables | set(texts.values()))
    if left:
        print(f"{source}: files that are no images are left out: {left}", file=sys.stderr)

    top = _wrapping(tree, images)
    if top:
        print(f"{source}: everything lies in {top}, which is passed over", file=sys.stderr)
    by_split = _by_split(source, images, top)
    depth = {"/" in inner for files in by_split.values() for inner, _ in files}
    if len(depth) > 1:
        flat = min(name for files in by_split.values() for inner, name in files if "/" not in inner)
        raise UserError(
            f"{source}: some images lie in class folders and some do not ({flat}); give all of them a class, or none"
        )
    classes = sorted({_class(inner) for files in by_split.values() for inner, _ in files}) if depth == {True} else []
    label = {name: i for i, name in enumerate(classes)}
    splits: dict[str, Sequence[Item]] = {}
    for split, files in by_split.items():
        items = []
        for inner, name in files:
            group = _class(inner) if classes else ""
            parts = partial(_parts, tree, name, label.get(group), texts.get(name), said.get(name, ()))
            items.append(Item(name, parts, group=group, stamp=f"{tree.sizes[name]}"))
        splits[split] = items
    if test_fraction:
        splits = with_held_out(splits, "test", test_fraction)
    if not classes:
        print(f"{source}: {len(images):,} images without classes", file=sys.stderr)
        return SourceSet(splits, {})
    names = _class_names(source, classes)
    print(f"{source}: {len(images):,} images of {len(classes):,} classes", file=sys.stderr)
    bare = _without_images(tree, by_split)
    if bare:
        shown = ", ".join(bare[:_SHOWN]) + (f" and {len(bare) - _SHOWN:,} more" if len(bare) > _SHOWN else "")
        print(f"{source}: class folders without an image are left out: {shown}", file=sys.stderr)
    return SourceSet(splits, {"classnames.txt": names, "zeroshot_classification_templates.txt": ["a photo of a {c}."]})


def _others(tree: Tree, used: set[str]) -> str:
    """The files that are neither images nor read otherwise, counted by ending."""
    images = set(tree.images)
    counts = Counter(ending(name) or "no ending" for name in tree.sizes if name not in images and name not in used)
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{count:,} x {kind}" for kind, count in ordered[:_SHOWN]]
    if len(ordered) > _SHOWN:
        shown.append(f"{sum(count for _, count in ordered[_SHOWN:]):,} with other endings")
    return ", ".join(shown)


def _wrapping(tree: Tree, images: Sequence[str]) -> str:
    """The one folder that an archive wraps everything in, with its slash; empty where there is none."""
    first = images[0].partition("/")[0]
    top = f"{first}/"
    if tree.where.is_dir() or first.lower() in _SPLITS:
        return ""
    return top if all(name.startswith(top) and "/" in name[len(top) :] for name in images) else ""


def _by_split(source: Path, images: Sequence[str], top: str) -> dict[str, list[tuple[str, str]]]:
    """For each split: path below the split's folder, and the whole path."""
    folders: dict[str, str] = {}
    strange: list[str] = []
    for name in images:
        first, slash, _ = name[len(top) :].partition("/")
        if slash and first.lower() in _SPLITS:
            folders[first] = _SPLITS[first.lower()]
        else:
            strange.append(name)
    if not folders or (strange and len(set(folders.values())) < 2):
        _refuse_deeper_splits(source, images, top)
        return {"train": [(name[len(top) :], name) for name in images]}
    if strange:
        raise UserError(
            f"{source} has the splits {', '.join(sorted(folders))}, and images beside them ({strange[0]}): move those "
            "into a split, or elsewhere"
        )
    found: dict[str, list[tuple[str, str]]] = {}
    for split in ("train", "val", "test"):
        names = sorted(folder for folder, kind in folders.items() if kind == split)
        if len(names) > 1:
            raise UserError(f"{source}: {' and '.join(names)} would both be the {split} split: rename one of them")
        if names:
            start = f"{top}{names[0]}/"
            found[split] = [(name[len(start) :], name) for name in images if name.startswith(start)]
    return found


def _refuse_deeper_splits(source: Path, images: Sequence[str], top: str) -> None:
    """The splits of a folder in the source would all become one class."""
    parts = [name[len(top) :].split("/", 2) for name in images]
    below = {part[1] for part in parts if len(part) == 3 and part[1].lower() in _SPLITS}
    if len({part[0] for part in parts}) == 1 and len({_SPLITS[name.lower()] for name in below}) > 1:
        inner = source / top / parts[0][0]
        raise UserError(f"the splits {', '.join(sorted(below))} lie in {inner}: give that as --source")


def _without_images(tree: Tree, by_split: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """The folders where classes are that hold no image."""
    full, places = set(), set()
    for files in by_split.values():
        for inner, name in files:
            place = name[: len(name) - len(inner)]
            places.add(place)
            full.add(place + _class(inner))
    return sorted(folder for folder in tree.folders - full if folder[: folder.rfind("/") + 1] in places)


def _class(inner: str) -> str:
    return inner.partition("/")[0]


def _class_names(source: Path, classes: Sequence[str]) -> list[str]:
    """What the class folders are called in prompts: one name a line, each different."""
    names = [" ".join(folder.replace("_", " ").split()) or folder for folder in classes]
    for folder in classes:
        if any(category(c) in ("Cc", "Cs") for c in folder):  # a line end in it, or bytes that are no UTF-8
            raise UserError(f"{source}: class folder {folder!r} cannot be a line of classnames.txt: rename it")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        same = [folder for folder, name in zip(classes, names) if name == twice]
        raise UserError(
            f"{source}: class folders {' and '.join(map(repr, same))} are both the class {twice!r}: rename one"
        )
    return names


def _parts(tree: Tree, name: str, label: int | None, text: str | None, said: Sequence[str]) -> dict[str, bytes]:
    parts = {suffix_of(name): tree.read(name)}
    if label is not None:
        parts["cls"] = str(label).encode()
    captions = list(said)
    if text is not None:
        content = decode_text(tree.read(text), f"{tree.where / text}")
        captions = [line for raw in content.split("\n") if (line := raw.strip())] + captions
    if captions:
        parts["txt"] = "\n".join(captions).encode()
    return parts


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--test-fraction",
        type=fraction,
        default=0.0,
        help="share of the training images that becomes the test split, where the source has none; chosen as "
        "--val-fraction does (default: %(default)s)",
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with empty images: raise refuses them, skip leaves them out and says so "
        "(default: %(default)s)",
    )


SHARDER = Sharder(
    "folder",
    "own images: <split>/<class>/…, <class>/… or plain images; captions in a .txt beside an image, or in "
    "metadata.csv or metadata.jsonl (file_name, text)",
    lambda source, options: open_folder(source, options.test_fraction, options.on_error),
    _add_options,
    reads_all=True,
)

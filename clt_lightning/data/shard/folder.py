"""Own images: `<split>/<class>/*`, `<class>/*`, or plain images in one folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.data.shard.sources import SourceSet, Tree, open_tree, suffix_of
from clt_lightning.data.shard.writer import Item

_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


def open_folder(source: Path, test_fraction: float = 0.0) -> SourceSet:
    """Images copied as they are; a class is the folder directly above the image.

    Args:
        source: the folder (or a zip or tar of it).
        test_fraction: share of the images that becomes the test split, where the source has no split folders.

    Raises:
        UserError: there are no images, or some lie in class folders and some do not.
    """
    tree = open_tree(source)
    images = tree.images()
    ignored = sum(1 for n in tree.files if n not in set(images) and not n.endswith(".txt")) if tree.files else 0
    if ignored:
        print(f"{source}: {ignored} files are no jpg, png or webp and are left out", file=sys.stderr)
    if not images:
        raise UserError(f"{source} holds no image (jpg, jpeg, png, webp)")
    by_split = _by_split(images, test_fraction)
    depth = {len(inner.split("/")) > 1 for files in by_split.values() for inner in files}
    if len(depth) > 1:
        raise UserError(
            f"{source}: some images lie in class folders and some do not; give all of them a class, or none"
        )
    classes = sorted({_class(i) for files in by_split.values() for i in files}) if depth == {True} else []
    label = {name: i for i, name in enumerate(classes)}
    splits: dict[str, Sequence[Item]] = {}
    for split, files in by_split.items():
        splits[split] = [
            Item(full, partial(_parts, tree, full, label[_class(inner)] if classes else None))
            for inner, full in sorted(files.items())
        ]
    if not classes:
        return SourceSet(splits, {})
    names = [c.replace("_", " ") for c in classes]
    return SourceSet(splits, {"classnames.txt": names, "zeroshot_classification_templates.txt": ["a photo of a {c}."]})


def _by_split(images: list[str], test_fraction: float) -> dict[str, dict[str, str]]:
    """For each split: path below the split's folder to the whole path."""
    tops = {name.split("/")[0] for name in images}
    if all(top.lower() in _SPLITS for top in tops) and all("/" in name for name in images):
        found: dict[str, dict[str, str]] = {}
        for name in images:
            top, inner = name.split("/", 1)
            found.setdefault(_SPLITS[top.lower()], {})[inner] = name
        return found
    tests = round(len(images) * test_fraction)
    # evenly spaced over the sorted list, so every class keeps its share
    chosen = {images[i * len(images) // tests] for i in range(tests)} if tests else set()
    splits = {"train": {n: n for n in images if n not in chosen}, "test": {n: n for n in images if n in chosen}}
    return {split: files for split, files in splits.items() if files}


def _class(inner: str) -> str:
    return inner.split("/")[-2]


def _parts(tree: Tree, full: str, label: int | None) -> dict[str, bytes]:
    parts = {suffix_of(full): tree.files[full]()}
    if label is not None:
        parts["cls"] = str(label).encode()
    captions: Callable[[], bytes] | None = tree.files.get(str(Path(full).with_suffix(".txt")))
    if captions is not None:
        parts["txt"] = captions()
    return parts

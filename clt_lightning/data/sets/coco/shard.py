"""COCO 2017's official archives: images, `instances_*.json` and, if there, `captions_*.json`."""

from __future__ import annotations

import io
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clt_lightning.core.errors import UserError
from clt_lightning.data.lists import lines
from clt_lightning.data.sharding.sharder import Sharder, SourceSet
from clt_lightning.data.sharding.sources import Tree, first_existing, needed, open_tree, refuse_empty, suffix_of
from clt_lightning.data.sharding.writer import Item

_SPLITS = {"train": "train2017", "test": "val2017"}
_SITE = "from https://cocodataset.org/#download"


@dataclass(frozen=True)
class _Labels:
    """Labels of one COCO split by image id."""

    files: dict[int, str]
    areas: dict[int, dict[int, float]]
    captions: dict[int, list[str]]
    names: list[str]


def open_coco(source: Path) -> SourceSet:
    """train2017 as `train` and val2017 as `test`, JPEGs copied as they are.

    `npy` is the multi-hot vector over the categories (sorted by their ids), `cls` the category that covers the largest
    area in the image (areas of a category's instances are summed; -1 without annotations), `txt` the captions.

    Args:
        source: folder with `train2017.zip | train2017/`, `val2017.zip | val2017/` and
            `annotations_trainval2017.zip | annotations/`. A split whose images are not there is left out.

    Raises:
        UserError: no images or no annotations are there, or an annotated image is missing.
    """
    found = needed(
        first_existing(source, ["annotations", "annotations_trainval2017.zip"]),
        source,
        f"annotations_trainval2017.zip and no folder annotations/ (official file of 241 MB, {_SITE})",
    )
    annotations = open_tree(found)
    splits: dict[str, Sequence[Item]] = {}
    names: list[str] = []
    for split, stem in _SPLITS.items():
        images = first_existing(source, [stem, f"{stem}.zip"])
        if images is None:
            print(f"{source} has neither {stem}.zip nor {stem}/: no {split!r} split is written", file=sys.stderr)
            continue
        labels = _read_labels(annotations, stem)
        if names and labels.names != names:
            raise UserError(f"{found}: train2017 and val2017 list different categories")
        names = labels.names
        splits[split] = _items(open_tree(images), labels)
    if not splits:
        raise UserError(
            f"{source} has none of train2017.zip, val2017.zip, train2017/, val2017/ (official files, {_SITE})"
        )
    texts = {
        "classnames.txt": names,
        "zeroshot_classification_templates.txt": lines("templates_imagenet7"),
        "dataset_type.txt": ["multilabel"],
    }
    return SourceSet(splits, texts)


def _items(tree: Tree, labels: _Labels) -> list[Item]:
    by_file = {name.rpartition("/")[2]: name for name in tree.images}
    unlisted = len(by_file) - len(by_file.keys() & set(labels.files.values()))
    if unlisted:
        print(
            f"{tree.where}: {unlisted:,} images are left out, since the annotations do not list them", file=sys.stderr
        )
    refuse_empty(tree, [by_file[file] for file in labels.files.values() if file in by_file])
    items = []
    for image_id, file in sorted(labels.files.items()):
        if file not in by_file:
            raise UserError(f"{tree.where} lacks {file}, which the annotations list: extract or download it again")
        areas = labels.areas.get(image_id, {})
        captions = labels.captions.get(image_id)
        # of equally large categories the first
        largest = min(areas, key=lambda c: (-areas[c], c)) if areas else -1
        parts = partial(_parts, tree, by_file[file], largest, list(areas), len(labels.names), captions)
        items.append(Item(file, parts, group=str(largest), stamp=str(tree.sizes[by_file[file]])))
    return items


def _parts(tree: Tree, name: str, label: int, shown: list[int], n: int, captions: list[str] | None) -> dict[str, bytes]:
    vector = np.zeros(n, np.uint8)
    vector[shown] = 1
    multi_hot = io.BytesIO()
    np.save(multi_hot, vector)
    parts = {suffix_of(name): tree.read(name), "cls": str(label).encode(), "npy": multi_hot.getvalue()}
    if captions is not None:
        parts["txt"] = "\n".join(captions).encode()
    return parts


def _read_labels(annotations: Tree, stem: str) -> _Labels:
    instances = _read_json(annotations, f"instances_{stem}.json")
    if instances is None:
        raise UserError(
            f"{annotations.where} has no instances_{stem}.json (part of annotations_trainval2017.zip, {_SITE})"
        )
    captions = _read_json(annotations, f"captions_{stem}.json")
    try:
        categories = sorted(instances["categories"], key=lambda c: c["id"])
        index = {c["id"]: i for i, c in enumerate(categories)}
        areas: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for a in instances["annotations"]:
            areas[a["image_id"]][index[a["category_id"]]] += float(a["area"])
        sentences: dict[int, list[str]] = defaultdict(list)
        for c in sorted((captions or {"annotations": []})["annotations"], key=lambda c: c["id"]):
            sentences[c["image_id"]].append(" ".join(c["caption"].split()))
        files = {i["id"]: i["file_name"] for i in instances["images"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{annotations.where}: the annotations of {stem} lack {error}: is the file complete?"
        ) from error
    return _Labels(files, areas, sentences if captions else {}, [c["name"] for c in categories])


def _read_json(tree: Tree, name: str) -> dict[str, Any] | None:
    path = next((n for n in tree.sizes if n.rpartition("/")[2] == name), None)
    if path is None:
        return None
    try:
        content = json.loads(tree.read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{tree.where}: {path} is not valid JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{tree.where}: {path} holds no table: is it COCO's?")
    return content


SHARDER = Sharder(
    "coco",
    "COCO 2017: a folder with train2017.zip and val2017.zip (or folders train2017/ and val2017/) and "
    "annotations_trainval2017.zip (or annotations/)",
    lambda source, _: open_coco(source),
)

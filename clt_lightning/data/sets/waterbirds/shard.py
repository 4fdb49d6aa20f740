"""Images listed in a table with their class, an attribute and their split: Waterbirds' `metadata.csv` and its kin."""

from __future__ import annotations

import argparse
import csv
import io
import posixpath
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_text
from clt_lightning.data.sharding.sharder import SPLITS, Sharder, SourceSet
from clt_lightning.data.sharding.sources import IMAGE_ENDINGS, Tree, ending, open_tree, refuse_empty, suffix_of
from clt_lightning.data.sharding.writer import Item

_SPLITS = {"0": "train", "1": "val", "2": "test", "valid": "val", "validation": "val"} | {name: name for name in SPLITS}
_WATERBIRDS = {"y": ("landbird", "waterbird"), "place": ("land", "water")}
_TEMPLATES = ("a photo of a {c}.", "a {c}", "a picture of a {c}.")


@dataclass(frozen=True)
class Columns:
    """What the table's columns are called."""

    file: str = "img_filename"
    label: str = "y"
    attribute: str = "place"
    split: str = "split"


@dataclass(frozen=True)
class Values:
    """A column's values, in the order of their numbers, and what they are called."""

    column: str
    values: tuple[str, ...]
    names: tuple[str, ...]

    def __getitem__(self, value: str) -> int:
        return self.values.index(value)


@dataclass(frozen=True)
class _Row:
    line: int
    file: str
    label: str
    attribute: str
    split: str


def open_table(
    source: Path,
    columns: Columns | None = None,
    class_names: Sequence[str] = (),
    attribute_names: Sequence[str] = (),
) -> SourceSet:
    """Images copied as they are; `cls` is the class, `group` is `class * attributes + attribute`.

    Args:
        source: the folder with `metadata.csv` and the images that it names.
        columns: what the table's columns are called.
        class_names, attribute_names: what the values are called, in their order (numbers by size, other values by the
            alphabet); empty: Waterbirds' own for its columns, else the values themselves.

    Raises:
        UserError: the table lacks a column, a value or a split is none, an image is missing or empty, or the names do
            not fit the values; table and line are named.
    """
    columns = columns or Columns()
    table = source / "metadata.csv"
    if not table.is_file():
        raise UserError(f"{source} has no metadata.csv")
    rows = list(_rows(table, columns))
    if not rows:
        raise UserError(f"{table} lists no image")
    labels = _values(columns.label, (row.label for row in rows), class_names, "--class-names")
    attributes = _values(columns.attribute, (row.attribute for row in rows), attribute_names, "--attribute-names")
    tree = open_tree(source)
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    seen: dict[str, int] = {}
    for row in rows:
        if row.file not in tree.sizes or ending(row.file) not in IMAGE_ENDINGS:
            raise UserError(f"{table}, line {row.line}: there is no image {row.file!r} in {source}")
        if row.file in seen:
            raise UserError(f"{table}, line {row.line}: {row.file} is on line {seen[row.file]}, too")
        seen[row.file] = row.line
        label = labels[row.label]
        group = label * len(attributes.values) + attributes[row.attribute]
        parts = partial(_parts, tree, row.file, label, group)
        splits[row.split].append(Item(row.file, parts, group=str(group), stamp=str(tree.sizes[row.file])))
    refuse_empty(tree, list(seen))
    left = len(set(tree.images) - set(seen))
    if left:
        print(f"{source}: {left:,} images are left out, since metadata.csv does not list them", file=sys.stderr)
    groupnames = [f"{label}, {attribute}" for label in labels.names for attribute in attributes.names]
    for split, items in splits.items():
        counts = Counter(int(item.group) for item in items)
        told = ", ".join(f"{counts[i]:,} {name.replace(',', ' /')}" for i, name in enumerate(groupnames))
        if items:
            print(f"{split}: {told}", file=sys.stderr)
    texts = {
        "classnames.txt": labels.names,
        "groupnames.txt": groupnames,
        "zeroshot_classification_templates.txt": _TEMPLATES,
    }
    settings = {"columns": [columns.file, columns.label, columns.attribute, columns.split]}
    return SourceSet({split: items for split, items in splits.items() if items}, texts, settings)


def _rows(table: Path, columns: Columns) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(read_text(table)), strict=True)
    wanted = (columns.file, columns.label, columns.attribute, columns.split)
    try:
        missing = [name for name in wanted if name not in (reader.fieldnames or ())]
        if missing:
            has = ", ".join(reader.fieldnames or ()) or "nothing"
            raise UserError(
                f"{table} has no column {missing[0]!r}, but {has}: name the columns with --file-column, "
                "--label-column, --attribute-column and --split-column"
            )
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: it has not as many fields as the first line has names")
            told = [row[name].strip() for name in wanted]
            empty = next((name for name, value in zip(wanted, told) if not value), None)
            if empty is not None:
                raise UserError(f"{where}: {empty} is empty")
            split = _SPLITS.get(told[3].lower())
            if split is None:
                raise UserError(
                    f"{where}: {columns.split} is {told[3]!r}, but must be 0, 1 or 2 (train, val, test), or one of "
                    "these names"
                )
            file = posixpath.normpath(told[0].replace("\\", "/"))
            yield _Row(reader.line_num, file, told[1], told[2], split)
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: not CSV ({error})") from error


def _values(column: str, found: Iterator[str], names: Sequence[str], option: str) -> Values:
    def order(value: str) -> tuple[int, int, str]:
        number = value.removeprefix("-").isdecimal()
        return (0, int(value), "") if number else (1, 0, value)

    values = tuple(sorted(set(found), key=order))
    if not names:
        known = _WATERBIRDS.get(column, ())
        if len(known) == len(values) and values == ("0", "1"):
            names = known
        else:
            plain = any(order(value)[0] for value in values)
            names = [value if plain else f"{column} {value}" for value in values]
    if len(names) != len(values) or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise UserError(
            f"{option} must be {len(values)} different names, one for each value of {column} "
            f"({', '.join(values[:10])}), but is {','.join(names)!r}"
        )
    return Values(column, values, tuple(names))


def _parts(tree: Tree, name: str, label: int, group: int) -> Mapping[str, bytes]:
    return {suffix_of(name): tree.read(name), "cls": b"%d" % label, "group": b"%d" % group}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _add_options(parser: argparse.ArgumentParser) -> None:
    plain = Columns()
    for option, default, what in (
        ("--file-column", plain.file, "paths of the images below the source"),
        ("--label-column", plain.label, "classes"),
        ("--attribute-column", plain.attribute, "the attribute that goes with the class"),
        ("--split-column", plain.split, "0 | 1 | 2, or train | val | test"),
    ):
        parser.add_argument(
            option, default=default, metavar="NAME", help=f"column of the table: {what} (default: {default})"
        )
    for option, what in (("--class-names", "landbird,waterbird"), ("--attribute-names", "land,water")):
        parser.add_argument(
            option,
            type=_names,
            default=[],
            metavar="A,B",
            help=f"what the column's values are called, in their order, as {what} (default: Waterbirds' own, else the "
            "values)",
        )


def _open(source: Path, options: argparse.Namespace) -> SourceSet:
    columns = Columns(options.file_column, options.label_column, options.attribute_column, options.split_column)
    return open_table(source, columns, options.class_names, options.attribute_names)


SHARDER = Sharder(
    "waterbirds",
    "Waterbirds and sets like it (CelebA): a folder with metadata.csv (file, class, attribute, split) and the images "
    "that it names",
    _open,
    _add_options,
    reads_all=True,
)

"""Captions beside images: `metadata.csv` and `metadata.jsonl` as Hugging Face's image folders have them, and `.txt`."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import sys
from collections.abc import Iterator
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import decode_text
from clt_lightning.data.sharding.sources import IMAGE_ENDINGS, Tree, ending

METADATA = ("metadata.csv", "metadata.jsonl")
_FILE = "file_name"
_CAPTIONS = ("text", "caption", "captions", "texts")


def captions_of(tree: Tree) -> tuple[dict[str, list[str]], set[str]]:
    """What the tables of a tree say of its images.

    A table has a column `file_name` (relative to the table's folder) and one or several of `text`, `texts`, `caption`,
    `captions`; several lines for one image, and lists in JSON, are several captions.

    Returns:
        captions by the image's path, and the paths of the tables that were read.

    Raises:
        UserError: a table is damaged or names a file that is not there; table and line are named.
    """
    found: dict[str, list[str]] = {}
    used: set[str] = set()
    for table in (name for name in tree.sizes if name.rpartition("/")[2] in METADATA):
        where = f"{tree.where / table}"
        folder = posixpath.dirname(table)
        read = _csv_rows if table.endswith(".csv") else _json_rows
        columns: set[str] = set()
        for line, row in read(decode_text(tree.read(table), where), where):
            columns |= {str(column) for column in row}
            if _FILE not in row:
                continue
            path = posixpath.normpath(posixpath.join(folder, str(row[_FILE]).replace("\\", "/")))
            if path not in tree.sizes or ending(path) not in IMAGE_ENDINGS:
                raise UserError(f"{where}, line {line}: there is no image {row[_FILE]!r} (looked for {path})")
            said = [caption for column in _CAPTIONS for caption in _sentences(row.get(column), where, line)]
            found.setdefault(path, []).extend(said)
        if _FILE in columns and columns & set(_CAPTIONS):
            used.add(table)
        else:
            lacks = f"no column {_FILE}" if _FILE not in columns else f"none of the columns {', '.join(_CAPTIONS)}"
            print(f"{where} has {lacks}: no captions are taken from it", file=sys.stderr)
    return {path: said for path, said in found.items() if said}, used


def beside(tree: Tree, image: str) -> str | None:
    """The path of the `.txt` that holds an image's captions, one a line; None where there is none."""
    text = image[: len(image) - len(ending(image))] + ".txt"
    return text if text in tree.sizes else None


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{where}, line {reader.line_num}: it has not as many fields as the first line has names: put "
                    "quotes around captions with commas"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{where}, line {reader.line_num}: not CSV ({error})") from error


def _json_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}, line {number}: it must be a table with {_FILE}, but is {type(row).__name__}")
        yield number, row


def _sentences(value: Any, where: str, line: int) -> list[str]:
    """One caption a line, without line ends in them."""
    listed = value if isinstance(value, list) else [value]
    if any(not isinstance(v, str | None) for v in listed):
        raise UserError(f"{where}, line {line}: a caption must be a text or a list of texts, but is {value!r}")
    return [said for v in listed if v is not None and (said := " ".join(v.split()))]

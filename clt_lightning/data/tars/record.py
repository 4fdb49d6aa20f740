"""What stands beside the tars: `shards.json` (ours) or `index.json` (WebDataset's), with counts, sizes, checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import parse_json
from clt_lightning.data.tars.texts import beside, read_text

RECORD = "shards.json"
UNFINISHED = ".shards.partial.json"
"""What the `shard` command keeps in a folder until its last tar is written."""
_OTHERS = ("index.json",)


@dataclass(frozen=True)
class Entry:
    """What is recorded of one tar; None for what is not."""

    samples: int | None = None
    bytes: int | None = None
    sha256: str | None = None


def read_record(base: str, names: Sequence[str] = (RECORD, *_OTHERS)) -> dict[str, Entry]:
    """The first of the files that is there, by the tars' names; empty where there is none.

    Args:
        base: folder or address of the tars.
        names: the files to look for.

    Raises:
        UserError: it is damaged.
    """
    for name in names:
        where = beside(base, name)
        text = read_text(where)
        if text is not None:
            return dict(_entries(parse_json(text, where), where))
    return {}


def _entries(table: Mapping[str, Any], where: str) -> Iterator[tuple[str, Entry]]:
    rows = table.get("shardlist", table.get("shards"))
    expected = '{"shards": [{"name": "0.tar", "samples": 2500}, …]} or WebDataset\'s own index'
    if not isinstance(rows, list):
        raise UserError(f"{where} must be {expected}, but has no list `shards`. Mend it, or remove it")
    for number, row in enumerate(rows):
        named = isinstance(row, dict) and row.get("name", row.get("url"))
        if not isinstance(named, str):
            raise UserError(f"{where} must be {expected}, but entry {number} of the list is {str(row)[:60]!r}")
        told = {"samples": row.get("samples", row.get("nsamples")), "bytes": row.get("bytes")}
        for key, value in told.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise UserError(f"{where}, entry {named!r}: `{key}` must be a number from 0 on, but is {value!r}")
        digest = row.get("sha256")
        if digest is not None and not isinstance(digest, str):
            raise UserError(f"{where}, entry {named!r}: `sha256` must be a text, but is {digest!r}")
        yield named.rpartition("/")[2], Entry(told["samples"], told["bytes"], digest)

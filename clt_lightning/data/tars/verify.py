"""Whether the tars are still the files that were written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import sha256
from clt_lightning.core.progress import track
from clt_lightning.data.tars.layout import ShardFile
from clt_lightning.data.tars.record import RECORD, Entry, read_record


def verify(shards: Sequence[ShardFile], part: int = 0, parts: int = 1) -> None:
    """Compares the SHA-256 of local tars with what `shards.json` says.

    Args:
        shards: the tars.
        part, parts: this process reads every `parts`-th of them, from number `part` on.

    Raises:
        UserError: a tar was changed, or nothing is recorded to compare it with.
    """
    records: dict[str, dict[str, Entry]] = {}
    todo: list[tuple[ShardFile, str]] = []
    for shard in shards[part::parts]:
        if not shard.local:
            raise UserError(f"data.init_args.verify: {shard.url} is no local file; copy the tars, or set verify=false")
        folder, name = os.path.split(shard.url)
        if folder not in records:
            records[folder] = read_record(folder or ".", (RECORD,))
        digest = records[folder].get(name, Entry()).sha256
        if digest is None:
            raise UserError(
                f"data.init_args.verify: {os.path.join(folder, RECORD)} has no SHA-256 of {name}. The `shard` command "
                "writes it; for tars from elsewhere set verify=false"
            )
        todo.append((shard, digest))
    with ThreadPoolExecutor(4) as pool:
        hashed = pool.map(_hashed, todo)
        for shard, digest, found in track(hashed, "verifying tars", len(todo), "tars"):
            if found != digest.lower():
                pool.shutdown(cancel_futures=True)
                raise UserError(
                    f"shard {shard.url} is not the file that was written: its SHA-256 is {found[:16]}…, shards.json "
                    f"says {digest[:16]}…. Copy it again, or make it again"
                )


def _hashed(what: tuple[ShardFile, str]) -> tuple[ShardFile, str, str]:
    shard, digest = what
    try:
        return shard, digest, sha256(shard.url)
    except OSError as error:
        raise UserError(f"shard {shard.url} cannot be read: {error.strerror or error}") from error

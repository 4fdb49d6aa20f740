"""How many samples a tar holds and where each one begins: from the cache beside it, else by scanning it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.data.layout import ShardFile, is_http, read_text
from clt_lightning.data.scan import ShardIndex, scan

log = logging.getLogger(__name__)

CACHE_NAME = ".clt-index.npz"
_VERSION = 1


def build_index(
    shards: Sequence[ShardFile], *, counts: Sequence[int] | None = None, on_error: str = "raise"
) -> list[ShardIndex]:
    """Indexes the tars of a split: from the cache beside them, else by scanning.

    Args:
        shards: the tars.
        counts: samples of each tar, for remote ones.
        on_error: `raise` refuses a damaged tar; `skip` keeps its sound samples and says so in the log.

    Raises:
        UserError: a tar is damaged, has another size than `shards.json` says, or `counts` has the wrong length.
    """
    if counts is not None and len(counts) != len(shards):
        raise UserError(f"shard_counts lists {len(counts)} numbers for {len(shards)} shards: give one a shard")
    by_folder: dict[str, list[ShardFile]] = {}
    for shard in shards:
        if shard.local:
            by_folder.setdefault(os.path.dirname(shard.url), []).append(shard)
    found: dict[ShardFile, ShardIndex] = {}
    for folder, members in by_folder.items():
        found.update(_index_folder(folder, members))
    remote = _remote_counts([s for s in shards if not s.local])
    for i, shard in enumerate(shards):
        if not shard.local:
            count = counts[i] if counts is not None else remote.get(shard)
            found[shard] = ShardIndex(shard, None if count is None else int(count))
        elif found[shard].damage:
            _report_damage(found[shard], on_error)
    return [found[shard] for shard in shards]


def _report_damage(index: ShardIndex, on_error: str) -> None:
    if on_error != "skip":
        raise UserError(
            f"shard {index.file.url} is truncated or damaged: {index.damage}. Copy or make it again, or set "
            "data.init_args.on_error=skip to use its sound samples."
        )
    log.warning("shard %s is truncated or damaged: %s; its sound samples are used", index.file.url, index.damage)


# -- local folders: the cache -------------------------------------------------------------------------------------


def _index_folder(folder: str, shards: Sequence[ShardFile]) -> dict[ShardFile, ShardIndex]:
    _check_sizes(folder, shards)
    known = _load_cache(folder)
    stats = {s: os.stat(s.url) for s in shards}
    found, todo = {}, []
    for shard in shards:
        name, stat = os.path.basename(shard.url), stats[shard]
        stamp = (stat.st_size, stat.st_mtime_ns)
        if name in known and known[name][0] == stamp:
            found[shard] = replace(known[name][1], file=shard)
        else:
            todo.append(shard)
    if todo:
        for index in _scan_all(folder, todo):
            found[index.file] = index
        for shard, index in found.items():
            stat = stats[shard]
            known[os.path.basename(shard.url)] = ((stat.st_size, stat.st_mtime_ns), index)
        _save_cache(folder, known)
    return found


def _scan_all(folder: str, shards: Sequence[ShardFile]) -> Iterator[ShardIndex]:
    """Scans with progress; threads overlap the waiting on slow disks."""
    with ThreadPoolExecutor(min(8, len(shards))) as pool:
        yield from track(pool.map(scan, shards), f"counting samples in {folder or '.'}", len(shards), "shards")


def _check_sizes(folder: str, shards: Sequence[ShardFile]) -> None:
    """A shard that our `shard` command wrote must still have the size that it recorded."""
    text = read_text(folder or ".", "shards.json")
    try:
        recorded = {s["name"]: s["bytes"] for s in json.loads(text)["shards"]} if text else {}
    except (ValueError, KeyError, TypeError):
        log.warning("%s cannot be read: shard sizes are not checked", os.path.join(folder, "shards.json"))
        return
    for shard in shards:
        name = os.path.basename(shard.url)
        actual = os.path.getsize(shard.url)
        stated = recorded.get(name, actual)
        if stated != actual:
            log.warning("%s has %d bytes, shards.json says %d: it was changed or cut", shard.url, actual, stated)


Stamped = tuple[tuple[int, int], ShardIndex]


def _cache_paths(folder: str) -> list[str]:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:16]
    return [os.path.join(folder, CACHE_NAME), os.path.join(home, "clt_lightning", "index", f"{digest}.npz")]


def _load_cache(folder: str) -> dict[str, Stamped]:
    for path in _cache_paths(folder):
        try:
            with np.load(path, allow_pickle=False) as data:
                return _unpack(data)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.info("%s is not a readable index: scanning again", path)
    return {}


def _unpack(data: np.lib.npyio.NpzFile) -> dict[str, Stamped]:
    meta = json.loads(str(data["meta"]))
    if meta["version"] != _VERSION:
        return {}
    spans, labels = data["spans"], data["labels"]
    known: dict[str, Stamped] = {}
    at = 0
    for row in meta["shards"]:
        stop = at + row["samples"]
        index = ShardIndex(
            ShardFile(row["name"], row["name"]),
            row["samples"],
            spans[at:stop] if row["seekable"] else None,
            labels[at:stop],
            tuple((s, n) for s, n in row["suffixes"]),
            row["damage"],
        )
        known[row["name"]] = ((row["size"], row["mtime_ns"]), index)
        at = stop
    return known


def _save_cache(folder: str, known: dict[str, Stamped]) -> None:
    rows, spans, labels = [], [], []
    for name, ((size, mtime_ns), index) in sorted(known.items()):
        assert index.samples is not None
        assert index.labels is not None
        row = {"name": name, "size": size, "mtime_ns": mtime_ns, "samples": index.samples}
        rows.append(row | {"seekable": index.spans is not None, "suffixes": index.suffixes, "damage": index.damage})
        spans.append(index.spans if index.spans is not None else np.zeros((index.samples, 2), np.int64))
        labels.append(index.labels)
    meta = np.asarray(json.dumps({"version": _VERSION, "shards": rows}))
    for path in _cache_paths(folder):
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", suffix=".tmp", delete=False) as f:
                try:
                    np.savez(f, meta=meta, spans=np.concatenate(spans), labels=np.concatenate(labels))
                    f.close()
                    os.replace(f.name, path)
                except BaseException:
                    os.unlink(f.name)
                    raise
            return
        except OSError as error:
            log.info("the index cannot be kept at %s: %s", path, error)


# -- remote shards: counts that somebody else wrote -----------------------------------------------------------------


def _remote_counts(shards: Sequence[ShardFile]) -> dict[ShardFile, int]:
    """Counts from `shards.json` (ours) or `index.json` (WebDataset's) at the shards' base address."""
    counts: dict[ShardFile, int] = {}
    tables: dict[str, dict[str, int]] = {}
    for shard in shards:
        base, _, name = shard.url.split("?")[0].rpartition("/")
        if is_http(shard.url):
            if base not in tables:
                tables[base] = _count_table(base)
            if name in tables[base]:
                counts[shard] = tables[base][name]
    return counts


def _count_table(base: str) -> dict[str, int]:
    for name in ("shards.json", "index.json"):
        text = read_text(base, name)
        if text is None:
            continue
        try:
            data = json.loads(text)
            if "shardlist" in data:
                return {s["url"].rpartition("/")[2]: int(s["nsamples"]) for s in data["shardlist"]}
            return {s["name"]: int(s["samples"]) for s in data["shards"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{base}/{name} must be {{"shards": [{{"name": "0.tar", "samples": 2500}}, …]}} or WebDataset\'s '
                f"own index ({type(error).__name__}: {error})"
            ) from error
    return {}

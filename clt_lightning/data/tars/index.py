"""How many samples a tar holds and where each one begins: from the cache beside it, else by scanning it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import readable_by_the_group
from clt_lightning.core.progress import track
from clt_lightning.data.tars.addresses import is_http
from clt_lightning.data.tars.grouping import Extra, Fault, is_regular
from clt_lightning.data.tars.layout import ShardFile
from clt_lightning.data.tars.record import RECORD, Entry, read_record
from clt_lightning.data.tars.scan import ShardIndex, scan

log = logging.getLogger(__name__)

CACHE_NAME = ".clt-index.npz"
_VERSION = 2


def build_index(
    shards: Sequence[ShardFile], *, counts: Sequence[int] | None = None, on_error: str = "raise"
) -> list[ShardIndex]:
    """Indexes the tars of a split: from the cache beside them, else by scanning.

    Args:
        shards: the tars.
        counts: samples of each tar, for remote ones.
        on_error: `raise` refuses a damaged tar, and names that do not tell samples apart; `skip` keeps a damaged tar's
            sound samples and says so in the log, and leaves the others to the reader, which counts them.

    Raises:
        UserError: as said, or `counts` does not fit, or `shards.json` is damaged.
    """
    if counts is not None and len(counts) != len(shards):
        raise UserError(f"shard_counts lists {len(counts)} numbers for {len(shards)} shards: give one per shard")
    if counts is not None and any(count < 0 for count in counts):
        raise UserError(f"shard_counts holds a number below 0: {min(counts)}")
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
    indexes = judged_by_split([found[shard] for shard in shards])
    _report_faults(indexes, on_error)
    return indexes


def judged_by_split(indexes: Sequence[ShardIndex]) -> list[ShardIndex]:
    """Decides for all tars together which suffixes of several parts are suffixes; the others become faults."""
    having: Counter[str] = Counter()
    for index in indexes:
        having.update({extra.suffix: len(extra.positions) for extra in index.extras})
    samples = sum(index.samples or 0 for index in indexes)
    regular = {suffix for suffix, count in having.items() if is_regular(count, samples)}
    if regular:
        unread = ", ".join(f"{suffix} ({having[suffix]:,} samples)" for suffix in sorted(regular))
        log.warning("%s …: members with these suffixes are not read: %s", indexes[0].file.url, unread)
    return [_judged(index, [e for e in index.extras if e.suffix not in regular]) for index in indexes]


def _judged(index: ShardIndex, irregular: Sequence[Extra]) -> ShardIndex:
    index = replace(index, extras=())
    if not irregular:
        return index
    faults = {fault.position: fault for fault in index.faults}
    for extra in irregular:
        for i, position in enumerate(extra.positions):
            faults.setdefault(position, Fault(position, "" if i else extra.key, "dotted", extra.suffix))
    return replace(index, faults=tuple(faults[position] for position in sorted(faults)))


def _report_damage(index: ShardIndex, on_error: str) -> None:
    if on_error != "skip":
        raise UserError(
            f"shard {index.file.url} is truncated or damaged: {index.damage}. Copy or make it again, or set "
            "data.init_args.on_error=skip to use its sound samples."
        )
    log.warning("shard %s is truncated or damaged: %s; its sound samples are used", index.file.url, index.damage)


def _report_faults(indexes: Sequence[ShardIndex], on_error: str) -> None:
    faulty = [index for index in indexes if index.faults]
    if not faulty:
        return
    first, total = faulty[0].faults[0], sum(len(index.faults) for index in faulty)
    more = f" {total} samples of {len(faulty)} tars are affected." if total > 1 else ""
    message = f"shard {faulty[0].file.url}, sample {first.key!r}: {first.reason}.{more}"
    if on_error != "skip":
        raise UserError(f"{message} data.init_args.on_error=skip leaves such samples out and counts them.")
    log.warning("%s They are left out", message)


# -- local folders: the cache -------------------------------------------------------------------------------------


def _index_folder(folder: str, shards: Sequence[ShardFile]) -> dict[ShardFile, ShardIndex]:
    known = _load_cache(folder)
    stats = {s: _stat(s) for s in shards}
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
    _compare_with_record(folder, found, {s: stat.st_size for s, stat in stats.items()})
    return found


def _stat(shard: ShardFile) -> os.stat_result:
    try:
        return os.stat(shard.url)
    except OSError as error:
        raise UserError(f"shard {shard.url} cannot be read: {error.strerror or error}") from error


def _scan_all(folder: str, shards: Sequence[ShardFile]) -> Iterator[ShardIndex]:
    """Scans with progress; threads overlap the waiting on slow disks."""
    with ThreadPoolExecutor(min(8, len(shards))) as pool:
        yield from track(pool.map(scan, shards), f"counting samples in {folder or '.'}", len(shards), "shards")


def _compare_with_record(folder: str, found: Mapping[ShardFile, ShardIndex], sizes: Mapping[ShardFile, int]) -> None:
    """A shard that our `shard` command wrote must still be as it recorded."""
    recorded = read_record(folder or ".", (RECORD,))
    for shard, index in found.items():
        entry = recorded.get(os.path.basename(shard.url), Entry())
        for what, actual, stated in (
            ("bytes", sizes[shard], entry.bytes),
            ("samples", index.samples, entry.samples),
        ):
            if stated is not None and stated != actual:
                log.warning("%s has %s %s, %s says %d: it was changed or cut", shard.url, actual, what, RECORD, stated)
                break


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
        except Exception as error:  # NumPy and zipfile raise nearly anything on broken bytes
            log.info("%s is not a readable index (%s): scanning again", path, error)
    return {}


def _unpack(data: np.lib.npyio.NpzFile) -> dict[str, Stamped]:
    meta = json.loads(str(data["meta"]))
    if meta["version"] != _VERSION:
        return {}
    spans, labels, places = data["spans"], data["labels"], data["extras"].tolist()
    if spans.dtype != np.int64 or labels.dtype != np.int64 or spans.shape != (len(labels), 2):
        raise ValueError(f"spans {spans.dtype} {spans.shape}, labels {labels.dtype} {labels.shape}")
    if (spans[:, 0] < 0).any() or (spans[:, 1] < spans[:, 0]).any():
        raise ValueError("spans that no tar has")
    known: dict[str, Stamped] = {}
    at = 0
    for row in meta["shards"]:
        stop = at + row["samples"]
        if not at <= stop <= len(labels):
            raise ValueError(f"{row['name']}: samples {row['samples']}")
        index = ShardIndex(
            ShardFile(row["name"], row["name"]),
            row["samples"],
            spans[at:stop] if row["seekable"] else None,
            labels[at:stop],
            tuple((s, n) for s, n in row["suffixes"]),
            row["damage"],
            tuple(Fault(*fault) for fault in row["faults"]),
            tuple(Extra(suffix, key, tuple(places[start:end])) for suffix, key, start, end in row["extras"]),
        )
        known[row["name"]] = ((row["size"], row["mtime_ns"]), index)
        at = stop
    return known


def _save_cache(folder: str, known: dict[str, Stamped]) -> None:
    rows, spans, labels = [], [], []
    places: list[int] = []
    for name, ((size, mtime_ns), index) in sorted(known.items()):
        assert index.samples is not None
        assert index.labels is not None
        row = {"name": name, "size": size, "mtime_ns": mtime_ns, "samples": index.samples}
        row |= {"seekable": index.spans is not None, "suffixes": index.suffixes, "damage": index.damage}
        extras = []
        for extra in index.extras:
            extras.append((extra.suffix, extra.key, len(places), len(places) + len(extra.positions)))
            places += extra.positions
        faults = [(f.position, f.key, f.rule, f.what) for f in index.faults]
        rows.append(row | {"faults": faults, "extras": extras})
        spans.append(index.spans if index.spans is not None else np.zeros((index.samples, 2), np.int64))
        labels.append(index.labels)
    meta = np.asarray(json.dumps({"version": _VERSION, "shards": rows}))
    for path in _cache_paths(folder):
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", suffix=".tmp", delete=False) as f:
                try:
                    np.savez(
                        f,
                        meta=meta,
                        spans=np.concatenate(spans),
                        labels=np.concatenate(labels),
                        extras=np.asarray(places, np.int64),
                    )
                    f.close()
                    readable_by_the_group(f.name)
                    os.replace(f.name, path)
                except BaseException:
                    os.unlink(f.name)
                    raise
            return
        except OSError as error:
            log.info("the index cannot be kept at %s: %s", path, error)


def _remote_counts(shards: Sequence[ShardFile]) -> dict[ShardFile, int]:
    """Counts that somebody else wrote, at the shards' base address."""
    counts: dict[ShardFile, int] = {}
    tables: dict[str, dict[str, Entry]] = {}
    for shard in shards:
        base, _, name = shard.url.split("?")[0].rpartition("/")
        if is_http(shard.url):
            if base not in tables:
                tables[base] = read_record(base)
            count = tables[base].get(name, Entry()).samples
            if count is not None:
                counts[shard] = count
    return counts

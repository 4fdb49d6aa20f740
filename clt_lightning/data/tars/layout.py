"""Where the tars of a split are: the public CLIP_benchmark layout, flat folders, patterns, addresses.

Nothing is opened here but small text files; the result is a list of `ShardFile`.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from braceexpand import braceexpand

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_reason
from clt_lightning.data.tars.addresses import as_local, check_allowed, is_http, is_local
from clt_lightning.data.tars.limits import MAX_SHARDS
from clt_lightning.data.tars.record import RECORD, UNFINISHED, read_record
from clt_lightning.data.tars.texts import beside, read_text

log = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_STAND_INS = {"train": ("train",), "val": ("val", "validation", "test"), "test": ("test", "val", "validation")}


@dataclass(frozen=True)
class ShardFile:
    """One tar: its address and the name that its samples' keys begin with (unique in the split)."""

    url: str
    name: str

    @property
    def local(self) -> bool:
        return is_local(self.url)


@dataclass(frozen=True)
class SplitFiles:
    """The tars of one split.

    Attributes:
        asked: the split that was asked for.
        found: the split that is read (`test` may stand in for `val`, and the other way round).
        shards: the tars, in the order of their numbers.
    """

    asked: str
    found: str
    shards: tuple[ShardFile, ...]


def find_split(root: str, split: str, *, hint: str = "") -> SplitFiles | None:
    """Finds the tars of `split` under `root`.

    Args:
        root: a folder in the public layout (`<root>/<split>/0.tar …`), a flat folder of tars whose names hold the
            split's name, or an http(s) address of the former.
        split: `train`, `val` or `test`.
        hint: what makes this set, appended to errors.

    Returns:
        The tars, or None where the root has no such split and none that can stand in for it.

    Raises:
        UserError: the root is missing, a split's folder is empty, or `nshards.txt` disagrees with the files.
    """
    if not is_local(root):
        return _find_remote(root.rstrip("/"), split, hint)
    if not os.path.isdir(root):
        raise UserError(f"data root {root!r} is not a folder.{_sentence(hint)}")
    for name in _STAND_INS[split]:
        shards = _folder_shards(os.path.join(root, name), hint)
        if not shards and (shards := _flat_shards(root, name)):
            _warn_of_others(root)
        if shards:
            return SplitFiles(split, name, name_shards(shards))
    loose = _tars_in(root)
    if split == "train" and loose and not any(_flat_shards(root, n) for n in ("val", "validation", "test")):
        log.info("%s: a flat folder of tars with no split in their names: all of them are the train split", root)
        return SplitFiles(split, split, name_shards(loose))
    return None


def expand(patterns: str | Sequence[str], split: str, *, allow_pipe: bool = False, hint: str = "") -> SplitFiles:
    """Expands brace and glob patterns, folders, and addresses into the tars of a split.

    Args:
        patterns: one or several of `dir/{0000..0009}.tar`, `dir/*.tar`, a folder, `http(s)://…`, `pipe:…`.
        split: the split's name, for messages.
        allow_pipe: whether addresses that run a shell command (`pipe:…`, and `s3://` and the like) are allowed.
        hint: what makes this set, appended to errors.

    Raises:
        UserError: nothing matches, a named file is missing, or a `pipe:` address without leave.
    """
    urls: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for url in _braces(pattern, split):
            if not is_local(url):
                check_allowed(url, allow_pipe)
                urls.append(url)
            elif os.path.isdir(url):
                urls.extend(_folder_shards(url, hint))
            elif glob.has_magic(url) and not os.path.exists(url):
                # a file may be called `pipe:…`: what was found on disk is never taken for an address
                matches = sorted((as_local(found) for found in glob.glob(url, recursive=True)), key=_natural)
                if not matches:
                    raise UserError(f"{split}: no file matches {url!r}.{_sentence(hint)}")
                urls.extend(matches)
            elif os.path.isfile(url):
                urls.append(url)
            else:
                raise UserError(f"{split}: there is no file {url!r} (from pattern {pattern!r}).{_sentence(hint)}")
            if len(urls) > MAX_SHARDS:
                raise UserError(f"{split}: pattern {pattern!r} makes more than {MAX_SHARDS:,} shards")
    if not urls:
        raise UserError(f"{split}: the list of shards is empty.{_sentence(hint)}")
    return SplitFiles(split, split, name_shards(urls))


def name_shards(urls: Sequence[str]) -> tuple[ShardFile, ...]:
    """Gives every address the shortest name that is unique in the list.

    Raises:
        UserError: an address is listed twice.
    """
    seen: dict[str, str] = {}
    for url in urls:
        place = os.path.abspath(url) if is_local(url) else url
        if place in seen:
            also = f", once as {seen[place]!r}" if seen[place] != url else ""
            raise UserError(f"shard {url!r} is listed twice{also}: every sample must be read once")
        seen[place] = url
    names = [_stem(url, i) for i, url in enumerate(urls)]
    depth = 2
    while not _distinct(names) and depth < 64:
        names = [_stem(url, i, depth) for i, url in enumerate(urls)]
        depth += 1
    if not _distinct(names):
        names = [f"{name}#{i}" for i, name in enumerate(names)]
    return tuple(ShardFile(url, name) for url, name in zip(urls, names))


def _distinct(names: Sequence[str]) -> bool:
    """Whether `<name>/<sample key>` can be the same for no two of them."""
    known = set(names)
    above = (name[:at] for name in names for at in range(len(name)) if name[at] == "/")
    return len(known) == len(names) and not any(part in known for part in above)


def _braces(pattern: str, split: str) -> Iterator[str]:
    for first, last, step in re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}", pattern):
        if abs(int(last) - int(first)) // (int(step or 1) or 1) >= MAX_SHARDS:  # braceexpand would list them all
            raise UserError(f"{split}: pattern {pattern!r} makes more than {MAX_SHARDS:,} shards")
    try:
        yield from braceexpand(pattern)
    except ValueError as error:
        raise UserError(f"{split}: the braces of {pattern!r} do not match ({error})") from error


def _find_remote(root: str, split: str, hint: str) -> SplitFiles | None:
    if not is_http(root):
        raise UserError(f"data root {root!r}: only folders and http(s) addresses can be a root; give patterns instead")
    for name in _STAND_INS[split]:
        text = read_text(f"{root}/{name}/nshards.txt")
        if text is not None:
            count = _parse_nshards(text, f"{root}/{name}/nshards.txt", hint)
            return SplitFiles(split, name, name_shards([f"{root}/{name}/{i}.tar" for i in range(count)]))
    return None


def _folder_shards(folder: str, hint: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    tars = _tars_in(folder)
    stated = read_text(beside(folder, "nshards.txt"))
    if stated is None:
        return _uncounted(folder, tars, hint)
    there = {os.path.basename(tar) for tar in tars}
    count = _parse_nshards(stated, beside(folder, "nshards.txt"), hint)
    expected = {name for name in there if re.fullmatch(r"(0|[1-9]\d{0,8})\.tar", name) and int(name[:-4]) < count}
    if len(expected) == len(there) == count:
        return [os.path.join(folder, f"{i}.tar") for i in range(count)]
    if len(there) == count and not expected:
        log.info("%s: the tars are not called 0.tar, 1.tar, …; reading them in the order of their numbers", folder)
        return tars
    missing = list(islice((f"{i}.tar" for i in range(count) if f"{i}.tar" not in there), 3))
    extra = sorted(there - expected, key=_natural)
    what = f"{_some(missing, count - len(expected))} missing" if missing else f"{_some(extra, len(extra))} extra"
    raise UserError(
        f"{folder}/nshards.txt says {count} shards, but the folder holds {len(tars)} ({what}). Copy the folder again "
        f"or mend nshards.txt.{_sentence(hint)}"
    )


def _uncounted(folder: str, tars: list[str], hint: str) -> list[str]:
    """The tars of a folder without `nshards.txt`."""
    if os.path.exists(os.path.join(folder, UNFINISHED)):
        raise UserError(f"{folder} is not complete: `shard` was interrupted. Call it again with the same options")
    if not tars:
        raise UserError(f"{folder} holds no tar.{_sentence(hint)}")
    there = {os.path.basename(tar) for tar in tars}
    missing = [name for name in read_record(folder, (RECORD,)) if name not in there]
    if missing:
        what = _some(missing, len(missing))
        raise UserError(f"{folder}/{RECORD} lists {what}, which the folder lacks. Copy it again.{_sentence(hint)}")
    log.info("%s has no nshards.txt: reading the %d tars that are there", folder, len(tars))
    return tars


def _flat_shards(root: str, split: str) -> list[str]:
    found = [t for t in _tars_in(root) if re.search(rf"(^|[^a-z]){split}([^a-z]|$)", os.path.basename(t).lower())]
    if found:
        log.info("%s: a flat folder; %d tars have %r in their names", root, len(found), split)
    return found


def _warn_of_others(root: str) -> None:
    """Says which tars of a flat folder belong to no split."""
    named = {tar for name in _STAND_INS for stand_in in _STAND_INS[name] for tar in _flat_shards(root, stand_in)}
    others = [os.path.basename(tar) for tar in _tars_in(root) if tar not in named]
    if named and others:
        log.warning("%s: %s have no split in their names and are not read", root, _some(others, len(others)))


def _tars_in(folder: str) -> list[str]:
    try:
        names = [e.name for e in os.scandir(folder) if e.name.endswith(TAR_SUFFIXES) and not e.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {disk_reason(error) or error.strerror}") from error
    return [os.path.join(folder, n) for n in sorted(names, key=_natural)]


def _parse_nshards(text: str, where: str, hint: str) -> int:
    stated = text.strip()
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", stated):
        raise UserError(f"{where} must hold one integer, but holds {stated[:40]!r}")
    count = int(stated)
    if count < 1:
        raise UserError(f"{where} says {count} shards: the split is empty.{_sentence(hint)}")
    if count > MAX_SHARDS:
        raise UserError(f"{where} says {count} shards, but at most {MAX_SHARDS:,} are read: mend it.{_sentence(hint)}")
    return count


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def _stem(url: str, position: int, depth: int = 1) -> str:
    path = url.split("?")[0]
    if url.startswith("pipe:"):
        found = re.findall(r"[^\s'\"|<>]+\.(?:tar|tgz)\b", url)
        path = found[-1] if found else f"pipe-{position}"
    name = "/".join(p for p in path.split("/")[-depth:] if p)
    return re.sub(r"\.(tar\.gz|tgz|tar)$", "", name)


def _some(names: Sequence[str], total: int, limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {total - limit} more" if total > limit else "")


def _sentence(hint: str) -> str:
    return f" {hint}" if hint else ""

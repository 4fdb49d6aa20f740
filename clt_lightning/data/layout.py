"""Where the tars of a split are: the public CLIP_benchmark layout, flat folders, patterns, addresses.

Nothing is opened here but small text files; the result is a list of `ShardFile`.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from braceexpand import braceexpand

from clt_lightning.core.errors import UserError

log = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_STAND_INS = {"train": ("train",), "val": ("val", "validation", "test"), "test": ("test", "val", "validation")}
_HTTP_TIMEOUT_S = 60


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


def is_local(url: str) -> bool:
    """True for a plain path, False for `http://…`, `pipe:…` and every other address."""
    return not (url.startswith("pipe:") or re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", url))


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


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
        shards = _folder_shards(os.path.join(root, name), hint) or _flat_shards(root, name)
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
        for url in braceexpand(pattern):
            if not is_local(url):
                check_allowed(url, allow_pipe)
                urls.append(url)
            elif os.path.isdir(url):
                urls.extend(_folder_shards(url, hint))
            elif glob.has_magic(url) and not os.path.exists(url):
                matches = sorted(glob.glob(url, recursive=True), key=_natural)
                if not matches:
                    raise UserError(f"{split}: no file matches {url!r}.{_sentence(hint)}")
                urls.extend(matches)
            elif os.path.isfile(url):
                urls.append(url)
            else:
                raise UserError(f"{split}: there is no file {url!r} (from pattern {pattern!r}).{_sentence(hint)}")
    if not urls:
        raise UserError(f"{split}: the list of shards is empty.{_sentence(hint)}")
    return SplitFiles(split, split, name_shards(urls))


def check_allowed(url: str, allow_pipe: bool) -> None:
    """Refuses addresses that run a shell command unless the config allows them."""
    if not is_local(url) and not is_http(url) and not allow_pipe:
        raise UserError(
            f"{url!r} runs a shell command on this machine. If you trust it, set data.init_args.allow_pipe=true; "
            "otherwise give a path or an http(s) address."
        )


def read_text(root: str, name: str) -> str | None:
    """The text of `<root>/<name>` (a path or an http(s) address), or None where there is none."""
    if is_local(root):
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            return None
        with open(path, encoding="utf-8") as f:
            return f.read()
    url = f"{root.rstrip('/')}/{name}"
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as response:
            return response.read().decode("utf-8")
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):  # S3-like stores answer 403 for what is not there
            return None
        raise UserError(f"{url} answers {error.code} {error.reason}") from error
    except OSError as error:
        raise UserError(f"{url} cannot be read: {error}") from error


def read_lines(root: str, name: str) -> list[str] | None:
    """The non-empty lines of `<root>/<name>`, or None where there is no such file."""
    text = read_text(root, name)
    return None if text is None else [line.strip() for line in text.splitlines() if line.strip()]


def name_shards(urls: Sequence[str]) -> tuple[ShardFile, ...]:
    """Gives every address the shortest name that is unique in the list.

    Raises:
        UserError: an address is listed twice.
    """
    repeated = sorted({u for u in urls if urls.count(u) > 1}) if len(set(urls)) < len(urls) else []
    if repeated:
        raise UserError(f"shard {repeated[0]!r} is listed twice: every sample must be read once")
    names = [_stem(url, i) for i, url in enumerate(urls)]
    depth = 2
    while len(set(names)) < len(names) and depth < 64:
        names = [_stem(url, i, depth) for i, url in enumerate(urls)]
        depth += 1
    if len(set(names)) < len(names):
        names = [f"{name}#{i}" for i, name in enumerate(names)]
    return tuple(ShardFile(url, name) for url, name in zip(urls, names))


def _find_remote(root: str, split: str, hint: str) -> SplitFiles | None:
    if not is_http(root):
        raise UserError(f"data root {root!r}: only folders and http(s) addresses can be a root; give patterns instead")
    for name in _STAND_INS[split]:
        text = read_text(f"{root}/{name}", "nshards.txt")
        if text is not None:
            count = _parse_nshards(text, f"{root}/{name}/nshards.txt", hint)
            return SplitFiles(split, name, name_shards([f"{root}/{name}/{i}.tar" for i in range(count)]))
    return None


def _folder_shards(folder: str, hint: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    tars = _tars_in(folder)
    stated = os.path.join(folder, "nshards.txt")
    if not os.path.isfile(stated):
        if not tars:
            raise UserError(f"{folder} holds no tar.{_sentence(hint)}")
        log.info("%s has no nshards.txt: reading the %d tars that are there", folder, len(tars))
        return tars
    with open(stated, encoding="utf-8") as f:
        count = _parse_nshards(f.read(), stated, hint)
    numbered = [os.path.join(folder, f"{i}.tar") for i in range(count)]
    if set(numbered) == set(tars):
        return numbered
    if len(tars) == count and not any(os.path.exists(p) for p in numbered):
        log.info("%s: the tars are not called 0.tar, 1.tar, …; reading them in the order of their numbers", folder)
        return tars
    missing = [os.path.basename(p) for p in numbered if p not in tars]
    what = f"{_some(missing)} missing" if missing else f"{_some([os.path.basename(t) for t in tars[count:]])} extra"
    raise UserError(
        f"{stated} says {count} shards, but the folder holds {len(tars)} ({what}). Copy the folder again or mend "
        f"nshards.txt.{_sentence(hint)}"
    )


def _flat_shards(root: str, split: str) -> list[str]:
    found = [t for t in _tars_in(root) if re.search(rf"(^|[^a-z]){split}([^a-z]|$)", os.path.basename(t).lower())]
    if found:
        log.info("%s: a flat folder; %d tars have %r in their names", root, len(found), split)
    return found


def _tars_in(folder: str) -> list[str]:
    names = [e.name for e in os.scandir(folder) if e.name.endswith(TAR_SUFFIXES) and not e.name.startswith(".")]
    return [os.path.join(folder, n) for n in sorted(names, key=_natural)]


def _parse_nshards(text: str, where: str, hint: str) -> int:
    try:
        count = int(text.strip())
    except ValueError:
        raise UserError(f"{where} must hold one integer, but holds {text.strip()[:40]!r}") from None
    if count < 1:
        raise UserError(f"{where} says {count} shards: the split is empty.{_sentence(hint)}")
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


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _sentence(hint: str) -> str:
    return f" {hint}" if hint else ""

"""What the sources have in common: a folder, a zip or a tar as one flat list of files that can be read in any order."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.data.shard.writer import Item

IMAGE_ENDINGS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Endings that are copied as they are, and the suffix that they get in the tars."""


@dataclass(frozen=True)
class SourceSet:
    """A set that is ready to be written.

    Attributes:
        splits: the samples of each split, in the source's order.
        texts: small files of the public layout and their lines.
        settings: what else decides the bytes.
    """

    splits: Mapping[str, Sequence[Item]]
    texts: Mapping[str, Sequence[str]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """Files by their path (`/` between parts), each with the function that reads it."""

    where: Path
    files: Mapping[str, Callable[[], bytes]]

    def images(self) -> list[str]:
        return sorted(name for name in self.files if Path(name).suffix.lower() in IMAGE_ENDINGS and _visible(name))


def open_tree(path: Path) -> Tree:
    """Lists a folder, a zip or an uncompressed tar.

    Raises:
        UserError: it is none of these, or it is damaged.
    """
    try:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file())
            return Tree(path, {p.relative_to(path).as_posix(): p.read_bytes for p in found})
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)
            return Tree(path, {n: partial(_from_zip, archive, n) for n in archive.namelist() if not n.endswith("/")})
        return Tree(path, {name: partial(read_span, path, *span) for name, span in tar_members(path).items()})
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is damaged or not an archive ({error}): download it again") from error


def tar_members(path: Path, base: int = 0, size: int | None = None) -> dict[str, tuple[int, int]]:
    """Where each file of an uncompressed tar lies: `(first byte, size)`.

    Args:
        path: the tar.
        base: where it begins in the file, for a tar inside a tar.
        size: how long it is then.
    """
    found: dict[str, tuple[int, int]] = {}
    end = path.stat().st_size if size is None else base + size
    with path.open("rb") as f:
        f.seek(base)
        tar = tarfile.open(fileobj=f, mode="r:")  # noqa: SIM115 (closes no file of ours)
        while f.tell() <= end and (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"it ends inside {member.name!r}")
            if member.isfile():
                found[member.name.removeprefix("./")] = (member.offset_data, member.size)
    return found


def read_span(path: Path, start: int, size: int) -> bytes:
    """`size` bytes of a file, from `start` on."""
    with path.open("rb") as f:
        f.seek(start)
        return f.read(size)


def first_existing(source: Path, names: Sequence[str]) -> Path | None:
    """`source` itself, if it bears one of the names, else the first of them that lies in it."""
    if source.name in names:
        return source
    return next((source / name for name in names if (source / name).exists()), None)


def needed(path: Path | None, source: Path, what: str) -> Path:
    """The path, or an error that says which official file is missing."""
    if path is None:
        raise UserError(f"{source} has no {what}")
    return path


def suffix_of(name: str) -> str:
    """The suffix that an image file gets in the tars."""
    return IMAGE_ENDINGS[Path(name).suffix.lower()]


def _from_zip(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive.filename}: {name} is damaged ({error}): download the archive again") from error


def _visible(name: str) -> bool:
    """Not what macOS and editors leave behind."""
    return not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))

"""What the sources have in common: a folder, a zip or a tar as one flat list of files that can be read in any order."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_errors
from clt_lightning.core.progress import Progress

IMAGE_ENDINGS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpg"),
    ".png": "png",
    ".webp": "webp",
    **dict.fromkeys((".bmp", ".dib"), "bmp"),
    **dict.fromkeys((".tif", ".tiff"), "tif"),
    ".gif": "gif",
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "ppm"),
}
"""Endings of images, and the suffix that they get in the tars; the bytes are copied as they are."""

T = TypeVar("T")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Tree:
    """The files of a folder or an archive, but for hidden ones (`.DS_Store`, `__MACOSX/…`).

    Attributes:
        where: the folder or the archive.
        sizes: bytes of each file, by its path (`/` between parts), sorted.
        get: reads a file.
        folders: the paths of its folders, as far as they are listed.
    """

    where: Path
    sizes: Mapping[str, int]
    get: Callable[[str], bytes]
    folders: frozenset[str] = frozenset()

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            UserError: it cannot be read, or the archive is damaged there.
        """
        with read_errors(f"{self.where}: {name}"):
            try:
                return self.get(name)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise UserError(f"{self.where}: {name} is damaged ({error}): download the archive again") from error

    @cached_property
    def images(self) -> list[str]:
        """The paths of all images, sorted."""
        return [name for name in self.sizes if ending(name) in IMAGE_ENDINGS]


def ending(name: str) -> str:
    """What follows the last dot of a path's last part, with the dot and in lower case; empty where there is none."""
    stem, dot, end = name.rpartition("/")[2].rpartition(".")
    return f".{end.lower()}" if dot and stem else ""


def suffix_of(name: str) -> str:
    """The suffix that an image file gets in the tars."""
    return IMAGE_ENDINGS[ending(name)]


def open_tree(path: Path) -> Tree:
    """Lists a folder (links are followed), a zip or an uncompressed tar.

    Raises:
        UserError: it is none of these, it is damaged, or holds what cannot be read: a link that leads nowhere or in a
            circle, a folder without permission, an encrypted file, a name twice.
    """
    with read_errors(path):
        if path.is_dir():
            folders: set[str] = set()
            sizes = dict(sorted(_walk(path, folders)))
            return Tree(path, sizes, lambda name: (path / name).read_bytes(), frozenset(folders))
        if zipfile.is_zipfile(path):
            return _open_zip(path)
        return tree_of(path, tar_members(path))


def tree_of(path: Path, spans: Mapping[str, tuple[int, int]]) -> Tree:
    """The files of which `tar_members` said where they lie."""
    sizes = {name: size for name, (_, size) in sorted(spans.items()) if _visible(name)}
    return Tree(path, sizes, lambda name: _read_span(path, *spans[name]))


def empty_images(tree: Tree, names: Sequence[str]) -> list[str]:
    """Those of the images that have no byte: what is left of a broken download or a full disk."""
    return [name for name in names if not tree.sizes[name]]


def refuse_empty(tree: Tree, names: Sequence[str], remedy: str = "get them again, or take them out") -> None:
    """Refuses images without a byte.

    Raises:
        UserError: there are some; the first is named.
    """
    empty = empty_images(tree, names)
    if empty:
        count = "1 image is" if len(empty) == 1 else f"{len(empty):,} images are"
        raise UserError(f"{tree.where}: {count} empty (0 bytes), the first is {empty[0]}: {remedy}")


def tar_members(path: Path, base: int = 0, size: int | None = None) -> dict[str, tuple[int, int]]:
    """Where each file of an uncompressed tar lies: `(first byte, size)`.

    Args:
        path: the tar.
        base: where it begins in the file, for a tar inside a tar.
        size: how long it is then.

    Raises:
        UserError: it is damaged, compressed, no tar, or holds what cannot be read where it lies.
    """
    found: dict[str, tuple[int, int]] = {}
    links: list[tuple[str, str]] = []
    end = path.stat().st_size if size is None else base + size
    with path.open("rb") as f:
        _refuse_packed(path, f.read(8))
        f.seek(base)
        try:
            tar = tarfile.open(fileobj=f, mode="r:")  # noqa: SIM115 (closes no file of ours)
            while f.tell() <= end and (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                name = member.name.removeprefix("./")
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"it ends inside {member.name!r}")
                if member.islnk():
                    links.append((name, member.linkname.removeprefix("./")))
                elif (member.issym() or member.issparse()) and ending(name) in IMAGE_ENDINGS:
                    kind = "a symbolic link" if member.issym() else "a sparse file"
                    raise UserError(f"{path}: {name} is {kind}: unpack the archive, and give the folder")
                elif member.isfile():
                    _add(found, path, name, (member.offset_data, member.size))
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{path} is damaged or not an archive ({error}): download it again") from error
    for name, target in links:
        if target not in found:
            raise UserError(f"{path}: {name} is a link to {target}, which is not in the archive: download it again")
        _add(found, path, name, found[target])
    return found


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


def _walk(root: Path, folders: set[str]) -> Iterator[tuple[str, int]]:
    """Path and size of every file below a folder; links to files and folders are followed, as torchvision does."""
    lost: list[str] = []
    top = os.stat(root)
    # each folder with the folders above it, by which a link that leads back is known: (device, inode), the one above
    todo: list[tuple[str, tuple[Any, ...]]] = [("", ((top.st_dev, top.st_ino), ()))]
    with Progress(f"listing {root}", None, "files") as progress:
        while todo:
            prefix, above = todo.pop()
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not _visible(entry.name):
                        continue
                    if entry.is_dir():
                        place = entry.stat()
                        stamp = (place.st_dev, place.st_ino)
                        if entry.is_symlink():
                            _refuse_circle(root, name, stamp, above)
                        folders.add(name)
                        todo.append((f"{name}/", (stamp, above)))
                    elif entry.is_file():
                        yield name, entry.stat().st_size
                        progress.update()
                    elif ending(name) in IMAGE_ENDINGS:
                        lost.append(name)
    if lost:
        name = min(lost)
        path = root / name
        what = f"is a link that leads nowhere ({os.readlink(path)})" if path.is_symlink() else "is no regular file"
        more = f"; {len(lost) - 1} more like it" if len(lost) > 1 else ""
        raise UserError(f"{path} {what}{more}: mend it or take it out")


def _refuse_circle(root: Path, name: str, stamp: tuple[int, int], above: tuple[Any, ...]) -> None:
    while above:
        if above[0] == stamp:
            target = os.readlink(root / name)
            raise UserError(f"{root / name} is a link to a folder that it lies in ({target}): take it out")
        above = above[1]


def _open_zip(path: Path) -> Tree:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from error
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removeprefix("./")
        if info.is_dir() or not _visible(name):
            continue
        if info.flag_bits & 1:
            raise UserError(f"{path}: {name} is encrypted: unpack the archive, and give the folder")
        if stat.S_ISLNK(info.external_attr >> 16) and ending(name) in IMAGE_ENDINGS:
            raise UserError(f"{path}: {name} is a symbolic link: unpack the archive, and give the folder")
        _add(found, path, name, info)
    sizes = {name: info.file_size for name, info in sorted(found.items())}
    folders = {i.filename.strip("/") for i in archive.infolist() if i.is_dir() and _visible(i.filename)}
    return Tree(path, sizes, lambda name: archive.read(found[name]), frozenset(folders))


def _read_span(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as f:
        f.seek(start)
        return f.read(size)


def _add(found: dict[str, T], path: Path, name: str, value: T) -> None:
    if name in found:
        raise UserError(f"{path} holds {name} twice: which of them is meant? Unpack it, and give the folder")
    found[name] = value


def _refuse_packed(path: Path, head: bytes) -> None:
    for magic, how in _PACKED.items():
        if head.startswith(magic):
            raise UserError(
                f"{path} is compressed ({how}), so its files cannot be read in any order: unpack it, and give the "
                "folder"
            )


def _visible(name: str) -> bool:
    """Not what macOS and editors leave behind."""
    return not name.startswith((".", "__MACOSX")) and "/." not in name and "/__MACOSX" not in name

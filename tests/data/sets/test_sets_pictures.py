"""Loose pictures: what can be read is, and what cannot is named before any work begins."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.data.sets.pictures import find_pictures


def pixels(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0)))


def grey(value: int, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (value, value, value)).save(path)
    return path


def test_what_cannot_be_read_is_named_and_the_rest_is_taken(tmp_path: Path) -> None:
    for n in range(40):
        grey(n, tmp_path / "deep" / f"{n:02d}.png")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 cut")
    (tmp_path / "b.JPEG").write_bytes(b"")
    (tmp_path / "words.txt").write_text("none")
    (tmp_path / ".hidden.png").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"--outside .*: 2 of 42 pictures cannot be read and are left out: a\.jpg .*b\.JPEG"
    ):
        found = find_pictures(tmp_path, "--outside", 100, pixels)
    assert len(found) == 40
    batches = list(found)
    assert [len(batch) for batch in batches] == [32, 8]
    assert torch.cat(batches)[:, 0].tolist() == list(range(40))
    even = find_pictures(tmp_path / "deep", "--outside", 4, pixels)
    assert torch.cat(list(even))[:, 0].tolist() == [0, 10, 20, 30]


def test_archives_are_read_where_they_lie(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(grey(7, tmp_path / "one.png"), "in/one.png")
    assert torch.cat(list(find_pictures(tmp_path / "some.zip", "--outside", 9, pixels))).tolist() == [[7, 7, 7]]


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--outside .*nowhere: there is no such folder or archive"):
        find_pictures(tmp_path / "nowhere", "--outside", 9, pixels)
    with pytest.raises(UserError, match="there is no picture in it"):
        find_pictures(tmp_path, "--outside", 9, pixels)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of 1 pictures can be read, the first is a\.jpg"):
        find_pictures(tmp_path, "--outside", 9, pixels)

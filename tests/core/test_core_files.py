"""Files that are whole or not there, and texts that users wrote."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import (
    numbered_lines,
    read_json,
    read_lines,
    read_text,
    sha256,
    whole_file,
    whole_folder,
    write_json,
)
from clt_lightning.core.paths import expand


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with whole_file(target) as path:
        path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(target) as path:
        path.write_text("half" * (1 // (path.write_text("half") - 4)))
    assert target.read_text() == "old"
    assert names(target.parent) == ["a.txt"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "pages"
    with whole_folder(target) as path:
        (path / "stale").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_folder(target) as path:
        (path / "half").write_text("half" * (1 // ((path / "half").write_text("half") - 4)))
    assert names(target) == ["stale"]
    with whole_folder(target) as path:
        (path / "new").write_text("3")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["pages"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    with pytest.raises(UserError, match="thesis"), whole_folder(tmp_path / "thesis", lambda path: False):
        raise AssertionError("nothing may be written")


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_what_the_disk_refuses_is_one_message(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught, whole_file(tmp_path / "a.npz"):
        raise OSError(number, "as the system says")
    assert "a.npz" in str(caught.value)
    assert names(tmp_path) == []


def test_json_holds_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [float("nan"), 1.5, (float("inf"),)], "b": {"c": float("-inf")}})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "a": [None, 1.5, [None]],
        "b": {"c": None},
    }
    assert read_json(tmp_path / "a.json")["a"][1] == 1.5


def test_texts_of_users(tmp_path: Path) -> None:
    path = tmp_path / "classnames.txt"
    path.write_bytes("\ufeffcat\r\nlöwe \r\ndog\r\n\r\n".encode())
    assert read_lines(path) == ["cat", "löwe", "dog"]
    path.write_bytes(b"cat\ndog\nl\xf6we\n")
    with pytest.raises(UserError, match=r"classnames\.txt, line 3: .*UTF-8"):
        read_text(path)
    path.write_bytes("cat\n".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        read_text(path)
    path.write_text("cat\n\ndog\n")
    with pytest.raises(UserError, match="line 2: a blank line"):
        read_lines(path)
    assert read_lines(path, gaps=True) == ["cat", "dog"]
    assert numbered_lines(read_text(path), path, gaps=True) == [(1, "cat"), (3, "dog")]
    path.write_bytes("cat\rlöwe\r\ufeffdog\r".encode())  # old line ends, and two files that were joined
    assert read_lines(path) == ["cat", "löwe", "dog"]
    path.write_bytes(b"cat\rdog\rl\xf6we\r")
    with pytest.raises(UserError, match=r"line 3: byte 0xf6"):
        read_text(path)
    path.write_bytes("cat\ndog\n".encode("utf-16-be"))
    with pytest.raises(UserError, match=r"line 1: a zero byte"):
        read_text(path)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_is_none_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_paths_are_expanded_and_unset_variables_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("$MYSCRATCH/runs") == expand("${MYSCRATCH}/runs") == "/scratch/me/runs"
    assert expand("~/runs") == "/home/me/runs"
    assert expand("s3://$BUCKET/x") == "s3://$BUCKET/x"
    assert expand("runs/a~b") == "runs/a~b"
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(UserError, match=r"runs_dir.*NOT_SET is not set"):
        expand("$NOT_SET/runs", "runs_dir")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

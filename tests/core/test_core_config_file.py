"""YAML with the line of every key, and what is wrong with it in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from clt_lightning.core.config_file import parse_config, parse_value, read_config
from clt_lightning.core.errors import UserError


def test_lines() -> None:
    file = parse_config("a:\n  b: 1\n  c:\n  - x\n  - {d: 2}\ne: &k {f: 3}\ng: *k\n", "x.yaml")
    assert file.content == {"a": {"b": 1, "c": ["x", {"d": 2}]}, "e": {"f": 3}, "g": {"f": 3}}
    assert file.lines["a", "b"] == 2
    assert file.lines["a", "c", 1, "d"] == 5
    assert file.where(("a", "c", 1, "d")) == "x.yaml, line 5"
    assert file.where(("a", "b", "unknown", "deeper")) == "x.yaml, line 2"
    assert file.where(("z",)) == "x.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 2\n  d: 1\n  c: 3\n", "x.yaml, line 5: the key b.c stands twice .first in line 3"),
        ("a: [{b: 1, b: 2}]\n", "line 1: the key a.0.b stands twice"),
        ("a: [1, 2\nb: 3\n", "x.yaml, line 2: not YAML"),
        ("a:\n\tb: 3\n", "line 2: not YAML: a tab"),
        ("a\nb: 3\n", "line 2: not YAML: a colon too many"),
        ("a: 'x\n", "closed"),
        ("a: &a [*a]\n", "aliases"),
        ("a: *nothing\n", "line 1: not YAML: found undefined alias"),
        ("[" * 5000, "not YAML"),
        ("a: 1\n---\nb: 2\n", "line 2: not YAML"),
        ("a: !!python/name:os.system\n", "line 1: not YAML"),
        ("3\n", "no table of keys and values, but a number"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(text, "x.yaml")


def test_aliases_of_aliases() -> None:
    """A dozen lines that stand for 10^12 entries."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(UserError, match="aliases"):
        parse_config("\n".join(lines), "x.yaml")


def test_files(tmp_path: Path) -> None:
    (tmp_path / "vitb32.yaml").write_bytes(b"\xef\xbb\xbfname: x\r\n")
    assert read_config(tmp_path / "vitb32.yaml").content == {"name": "x"}
    with pytest.raises(UserError, match=r"--config .*vitb23\.yaml: no such file; there is .*vitb32\.yaml"):
        read_config(tmp_path / "vitb23.yaml", "--config")
    with pytest.raises(UserError, match="there is no folder"):
        read_config(tmp_path / "none" / "a.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 1: byte 0xe9 is not UTF-8"):
        read_config(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_config(tmp_path / "empty.yaml").content == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("3", 3), ("true", True), ("null", None), ("[1, 2]", [1, 2]), ("2024-01-01", "2024-01-01")],
)
def test_values(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert parse_value("[1, 2") == "[1, 2"  # no YAML: text


def test_values_are_read_as_jsonargparse_reads_them() -> None:
    from jsonargparse._loaders_dumpers import yaml_load

    for text in [
        "1e-3",
        ".5",
        "-.5",
        "1_0.5",
        "1.e5",
        "12:30.5",
        ".inf",
        "-.INF",
        ".nan",
        "1e5",
        "0.5",
        "5.",
        "null",
        "~",
        "yes",
        "0x1f",
        "12:30:45",
        "on",
        "off",
    ]:
        assert repr(parse_value(text)) == repr(yaml_load(text)), text  # type: ignore[no-untyped-call]

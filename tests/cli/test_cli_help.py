"""`fit --help` and its like: printed without what they describe, and the same as what the parsers say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clt_lightning.cli import ready_help
from clt_lightning.cli.main import COMMANDS, TRAINER_COMMANDS

HEAVY = {"torch", "lightning", "jsonargparse", "open_clip", "timm", "torchvision", "torchmetrics"}
OLD = "help.json is old: `python -m clt_lightning.cli.help_source` makes it anew"


@pytest.mark.parametrize("command", [*TRAINER_COMMANDS, *COMMANDS])
def test_no_help_loads_anything_heavy(command: str) -> None:
    code = (
        f"import sys\nfrom clt_lightning.cli.main import main\ntry:\n    main([{command!r}, '--help'])\n"
        "except SystemExit as left:\n    print(left.code, *{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, *loaded = result.stderr.split()
    assert status == "0"
    assert "usage: python -m clt_lightning" in result.stdout
    assert not HEAVY & set(loaded)


def test_the_file_says_what_the_parsers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    # in a process of its own: a parser lists the classes that are loaded, and those of tests are none of it
    code = (
        "import json, os\nfrom clt_lightning.cli.help_source import TRAINER_COMMANDS, parser_of\nfound = {}\n"
        "for command in TRAINER_COMMANDS:\n    parser = parser_of(command)\n    for width in ('60', '100', '173'):\n"
        "        os.environ['COLUMNS'] = width\n        found[f'{command} {width}'] = parser.format_help()\n"
        "print(json.dumps(found))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, said in json.loads(result.stdout).items():
        command, width = name.split()
        monkeypatch.setenv("COLUMNS", width)
        assert ready_help.ready_help(command) == said, OLD


def test_a_file_of_other_versions_or_sources_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = json.loads(ready_help.FILE.read_text())
    changes = [("versions", saved["versions"] | {"lightning": "2.0"}), ("sources", "0"), ("commands", {})]
    monkeypatch.setattr(ready_help, "FILE", tmp_path / "help.json")
    assert ready_help.ready_help("fit") is None
    for key, value in changes:
        ready_help.FILE.write_text(json.dumps(saved | {key: value}))
        assert ready_help.ready_help("fit") is None
    ready_help.FILE.write_text(json.dumps(saved)[:-100])
    assert ready_help.ready_help("fit") is None
    ready_help.FILE.write_text(json.dumps(saved))
    assert ready_help.ready_help("fit") is not None


def test_the_digest_sees_what_the_help_shows_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        'class A(B):\n    """Text."""\n    x: int = 1\n\n    def __init__(self, k: int = 2) -> None:\n        pass\n'
    )
    monkeypatch.setattr(ready_help, "PACKAGE", tmp_path)

    def digest(text: str) -> str:
        (tmp_path / "a.py").write_text(text)
        return ready_help.outlines({"a.py": ["A"]})

    before = digest(source)
    for old, new in (("Text", "Words"), ("x: int = 1", "x: int = 2"), ("k: int = 2", "k: int = 3"), ("(B)", "(C)")):
        assert digest(source.replace(old, new)) != before
    assert digest(source.replace("pass", "self.k = k") + "\ndef other() -> None:\n    pass\n") == before

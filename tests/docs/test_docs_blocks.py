"""No command and no block of the docs is left out: each is run by test_docs_run.py, or listed with its reason."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from clt_lightning.cli.completion import whole_parser
from clt_lightning.cli.main import COMMANDS, TRAINER_COMMANDS
from tests.docs.blocks import ROOT, Block, blocks, commands, commands_of, is_shell
from tests.docs.listed import LISTED, listed

#: Places of a config that hold a class, whose arguments are keys as well
OF_CLASSES = ("--data.", "--model.backbone.", "--model.optimizer.", "--model.transcoder.activation.")
#: Blocks that are no program: results, layouts, drawings
TEXTS = ("", "text", "jsonc", "bibtex")


def test_every_block_says_what_it_is() -> None:
    for block in blocks():
        assert is_shell(block) or block.language in ("python", "yaml", "json", *TEXTS), block.place


def test_every_command_is_ours_or_listed() -> None:
    left = [
        f"{c.block.place}: {c.text}" for c in commands() if not c.ours and listed(c) is None and not runs_here(c.words)
    ]
    assert not left, "neither run nor listed in tests/docs/not_run.yaml"


def runs_here(words: tuple[str, ...]) -> bool:
    """Programs that test_docs_run.py runs besides our own command."""
    return words[:2] == ("python", "-c")


def test_the_list_has_no_entry_that_fits_nothing() -> None:
    texts = [command.text for command in commands()]
    assert not [entry for entry in LISTED["commands"] if not any(t.startswith(entry["begins"]) for t in texts)]
    starts = {(block.page, block.text.splitlines()[0]) for block in blocks() if block.language in ("python", "yaml")}
    for entry in LISTED["blocks"]:
        assert any(page == entry["page"] and first.startswith(entry["begins"]) for page, first in starts), entry
    assert all(entry["reason"] for entries in LISTED.values() for entry in entries)


def test_commands_and_options_exist() -> None:
    pytest.importorskip("shtab")
    parsers: Any = whole_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for command in commands():
        if not command.ours or len(command.words) < 2 or command.words[1].startswith("-"):
            continue
        name = command.words[1]
        assert name in {*COMMANDS, *TRAINER_COMMANDS}, command.block.place
        parser: Any = parsers[name]
        known = set(parser._option_string_actions)
        for sub in (a.choices for a in parser._actions if isinstance(a.choices, dict)):
            known |= {option for inner in sub.values() for option in inner._option_string_actions}
        for word in command.words[2:]:
            option = word.partition("=")[0]
            deep = option.startswith(OF_CLASSES) and name in TRAINER_COMMANDS
            group = any(option != key and key.startswith(f"{option}.") for key in known)  # a table at once
            assert not word.startswith("--") or option in known or deep or group, f"{command.block.place}: {option}"


def test_files_that_commands_name_exist() -> None:
    for command in commands():
        for word in command.words:
            if re.fullmatch(r"configs/[\w/]+\.yaml", word) and "mine" not in word:
                assert (ROOT / word).is_file(), f"{command.block.place}: {word}"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {command.words[1] for command in commands() if command.words[0] == "make"}
    assert made
    assert made <= targets


def test_python_yaml_and_json_blocks_can_be_read() -> None:
    for block in blocks():
        if block.language == "python":
            compile(block.text, block.place, "exec")
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), block.place
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("python -m clt_lightning fit --a=b.yaml \\\n  --name=b  # why\n", ["clt-lightning fit --a=b.yaml --name=b"]),
        ("for x in a b; do clt-lightning test $x.c; done\n", ["clt-lightning test a.c", "clt-lightning test b.c"]),
        (".venv/bin/python -c 'print(1)'\nmake test > log\n", ["python -c print(1)", "make test"]),
        ("x='{a: 1, b: 2}'\nthing --y=\"$x\"\n", ["thing --y={a: 1, b: 2}"]),
    ],
)
def test_a_shell_reads_the_commands(text: str, found: list[str]) -> None:
    read = commands_of(Block("page.md", 1, "bash", text))
    assert [command.text for command in read] == found
    assert [command.again for command in read] == [False, *("for " in text for _ in found[1:])]


def test_a_block_that_is_no_shell_is_told() -> None:
    with pytest.raises(ValueError, match=r"page\.md:1"):
        commands_of(Block("page.md", 1, "bash", "for x in a b; do echo\n"))

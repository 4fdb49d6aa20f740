"""The code blocks of the README and the docs, and the commands in them, as a shell understands them."""

from __future__ import annotations

import re
import subprocess
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
#: Every program is unknown to this shell, which writes its words down and runs nothing
_RECORD = """
command_not_found_handle() { printf '%s\\0' "$@" $'\\x1e' >> "$RECORD"; }
PATH=/nowhere
"""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file, from the repository's root.
        line: of the file, where it opens.
        language: what the fence says, "" for nothing.
        text: what is in it.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block.

    Attributes:
        block: where it stands.
        words: program and arguments; this package's own begin with `clt-lightning`.
        again: whether a loop has run a command of this form before, with other values.
    """

    block: Block
    words: tuple[str, ...]
    again: bool = False

    @property
    def ours(self) -> bool:
        return self.words[0] == "clt-lightning"

    @property
    def text(self) -> str:
        return " ".join(self.words)


def pages() -> list[str]:
    """Every page that is read by users, from the repository's root."""
    found = [ROOT / "README.md", ROOT / "docker" / "README.md", ROOT / "slurm" / "README.md"]
    return [path.relative_to(ROOT).as_posix() for path in [*found, *sorted((ROOT / "docs").rglob("*.md"))]]


@cache
def blocks() -> tuple[Block, ...]:
    """All blocks of all pages, in order."""
    found = []
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for fence in _FENCE.finditer(text):
            line = text[: fence.start()].count("\n") + 1
            found.append(Block(page, line, fence["language"], textwrap.dedent(fence["text"])))
    return tuple(found)


def is_shell(block: Block) -> bool:
    """Whether a block is for a shell; some that hold a command say no language."""
    return block.language in ("bash", "sh", "console") or (
        not block.language and re.match(r"(\.venv/bin/)?python -m ", block.text) is not None
    )


@cache
def commands() -> tuple[Command, ...]:
    """Every command of every block for a shell, with variables, loops and quotes resolved by bash."""
    return tuple(command for block in blocks() if is_shell(block) for command in commands_of(block))


def commands_of(block: Block) -> list[Command]:
    """The commands of one block.

    Raises:
        ValueError: the shell does not understand it.
    """
    text = re.sub(r" >{1,2} ?\S+", "", block.text.replace(".venv/bin/python", "python"))  # nothing is written
    text = re.sub(r"\$\([^)]*\)", "1", text)  # what other programs would say
    with_record = f"RECORD=$1\n{_RECORD}\n{text}"
    record = subprocess.run(
        ["bash", "-c", 'R=$(mktemp); bash -c "$1" bash "$R" 1>&2 || exit 1; cat "$R"; rm "$R"', "bash", with_record],
        capture_output=True,
        check=False,
    )
    if record.returncode or b"syntax error" in record.stderr:
        raise ValueError(f"{block.place}: {record.stderr.decode()}")
    found: list[Command] = []
    forms: set[tuple[str, ...]] = set()
    for packed in record.stdout.split(b"\x1e\0")[:-1]:
        words = _own(tuple(packed.decode().split("\0")[:-1]))
        form = (*words[:2], *(word.partition("=")[0] for word in words if word.startswith("-")))
        written = all(word in block.text or word == "clt-lightning" for word in words)  # no variable of a loop in it
        found.append(Command(block, words, again=not written and form in forms))
        forms.add(form)
    return found


def _own(words: tuple[str, ...]) -> tuple[str, ...]:
    for beginning in (("python", "-m", "clt_lightning"), ("clt-lightning",)):
        if words[: len(beginning)] == beginning:
            return "clt-lightning", *words[len(beginning) :]
    return words

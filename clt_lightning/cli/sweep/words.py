"""`--sweep FILE` among the words of a command."""

from __future__ import annotations

from clt_lightning.cli.layers import options_of
from clt_lightning.core.errors import UserError


def split_words(words: list[str]) -> tuple[list[str], str | None]:
    """A command's words without `--sweep FILE`, and the file; None where there is none.

    Raises:
        UserError: it is given twice, without a file, or beside another command than fit.
    """
    if not any(word.partition("=")[0] == "--sweep" for word in words):
        return words, None
    given = [value for option, value in options_of(words[1:]) if option == "--sweep"]
    if words[0] != "fit":
        raise UserError(f"--sweep is for fit; {words[0]} takes one run: --run runs/NAME/MEMBER")
    if len(given) != 1:
        raise UserError("--sweep is given once: one file holds all members")
    return without(words, "--sweep"), given[0]


def without(words: list[str], option: str) -> list[str]:
    """The words without an option that takes a value."""
    kept, is_value = [], False
    for word in words:
        if not is_value and word.partition("=")[0] != option:
            kept.append(word)
        is_value = word == option
    return kept

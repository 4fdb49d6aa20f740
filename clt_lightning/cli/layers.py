"""What the user gave, in order: config files and options, each with the place to name in a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clt_lightning.core.classes import nearest
from clt_lightning.core.config_file import ConfigFile, Keys, parse_config, parse_value, read_config
from clt_lightning.core.errors import UserError

#: Options that take a file of further options
FILE_OPTIONS = ("--config", "-c")


@dataclass(frozen=True)
class Layer:
    """One config file, or one option of the command line.

    Attributes:
        content: keys and values, nested; an option's value is the text that was given.
        file: the file; None for an option.
        option: the option's name as it was given.
    """

    content: dict[Any, Any]
    file: ConfigFile | None = None
    option: str = ""

    def where(self, keys: Keys) -> str:
        """`configs/a.yaml, line 3` or `--trainer.max_steps`."""
        return self.file.where(keys) if self.file is not None else self.option

    def names(self, keys: Keys) -> bool:
        """Whether this layer says something about a key."""
        value: Any = self.content
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        return True


def layers_of(words: Sequence[str]) -> list[Layer]:
    """The config files and options of a command, without the command.

    Raises:
        UserError: a config file that cannot be read, an option without a value, a word that is no option.
    """
    return [layer for option, value in options_of(words) if (layer := _layer(option, value)) is not None]


#: Options that print something and take no value
PRINTING = ("-h", "--help", "--print_config")


def options_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Option and value, in order; options that take none have an empty one."""
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("-"):
            raise UserError(f"{word!r} is no option: options begin with --, as in --config {word}")
        option, equals, value = word.partition("=")
        if equals:
            yield option, value
        elif option in (*PRINTING, "--trust_config"):
            yield option, ""
        elif option.endswith(".help"):
            named = at < len(words) and not words[at].startswith("-")
            yield option, words[at] if named else ""
            at += named
        elif not option.startswith("--") and option not in FILE_OPTIONS:
            raise UserError(f"there is no option {option}{_close(option)}")
        elif at < len(words) and not _is_option(words[at]):
            yield option, words[at]
            at += 1
        else:
            yield option, _missing(option)


def _missing(option: str) -> str:
    what = " a file, such as configs/quickstart.yaml" if option in FILE_OPTIONS else " a value"
    raise UserError(f"{option} needs{what}")


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word != "-" and not word.startswith("-.")


def _layer(option: str, value: str) -> Layer | None:
    if option in FILE_OPTIONS:
        file = parse_config(value, option) if value.lstrip().startswith("{") else read_config(value, option)
        return Layer(file.content, file)
    if option in PRINTING or option.endswith(".help"):
        return None
    keys = option.removeprefix("--").removesuffix("+").split(".")
    content: Any = parse_value(value) if value[:1] in ("{", "[") else value
    for key in reversed(keys):
        content = {key: content}
    return Layer(content, None, option)


def _close(option: str) -> str:
    found = nearest(option.strip("-"), ("config", "help", "run", "name"))
    return f"; did you mean --{found[0]}?" if found else ""

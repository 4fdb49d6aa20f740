"""The parser of the commands that read no config of their own: a mistake is one line or two, not a page of usage."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from clt_lightning.core.classes import nearest
from clt_lightning.core.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which raises UserError: the option, what is wrong with it, and the nearest names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._words: list[str] = []

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's.

        Raises:
            UserError: an option or value that is none.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(self._unknown(unknown[0]))
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; remembers the words, to find a misspelt option where one is missing."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print after its usage."""
        if message.startswith(("the following arguments are required", "one of the arguments")):
            options = [word for word in self._words if word.startswith("--")]
            known = {name for parser in self._parsers() for name in parser._option_string_actions}
            for word in options:
                if word.partition("=")[0] not in known:
                    raise UserError(self._unknown(word))
        message = re.sub(r"^argument (?:-\w, )?([^:]+): ", r"\1: ", message)
        choice = re.match(r"(.*?): invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            words = [word.strip(" '") for word in choice[3].split(",")]
            close = nearest(choice[2], words, n=1)
            said = f"there is no {choice[2]!r}{f'; did you mean {close[0]}?' if close else ''}"
            message = f"{self._named(choice[1])}{said} (there are: {', '.join(words)})"
        message = message.replace("the following arguments are required: ", "needs ")
        message = message.replace("expected one argument", "needs a value")
        raise UserError(f"{message}\n  {self.prog} --help explains every option")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if not str(error.message).startswith("invalid "):
                raise
            wanted = "a whole number" if action.type is int else "a number"
            raise argparse.ArgumentError(action, f"expected {wanted}, got {arg_string!r}") from error

    def _named(self, name: str) -> str:
        return f"{name}: " if name.startswith("-") else ""

    def _unknown(self, word: str) -> str:
        option = word.partition("=")[0]
        known = sorted({name for parser in self._parsers() for name in parser._option_string_actions})
        close = nearest(option, known)
        if not word.startswith("-"):
            return f"{self.prog}: {word!r} is no option of it\n  {self.prog} --help explains every option"
        more = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known)}"
        return f"{self.prog} has no option {option}; {more}"

    def _parsers(self) -> Sequence[argparse.ArgumentParser]:
        """This parser and those of its subcommands."""
        found: list[argparse.ArgumentParser] = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += action.choices.values()
        return found


def truth(text: str) -> bool:
    """`true` or `false` on the command line.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def add_run_options(parser: argparse.ArgumentParser, needs: str = "", several: str = "") -> None:
    """Options of every command that opens a run; `run_options` gives them to `open_run`.

    Args:
        parser: gets them.
        needs: what must have been done with the run before, for the help.
        several: what several runs are for, where `--run` may be repeated: `args.run` is a list then.
    """
    more = f"; repeatable: {several}" if several else ""
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        action="append" if several else "store",
        help=f"run folder, e.g. runs/quickstart/version_0{needs and ', '}{needs}{more}",
    )
    parser.add_argument(
        "--data.init_args.root", dest="data_root", metavar="FOLDER", help="where the data are now, if they were moved"
    )
    parser.add_argument(
        "--data.init_args.allow_pipe",
        dest="allow_pipe",
        type=truth,
        default=False,
        metavar="{true,false}",
        help="whether addresses of the data that run a shell command (pipe:..., s3://...) may do so; the run's own "
        "config cannot allow it (default: false)",
    )
    parser.add_argument(
        "--trust_config",
        action="store_true",
        help="let the run name a data set or an activation beyond clt_lightning, lightning and torch, and run its code",
    )


def run_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_run_options` has read, as arguments of `open_run`."""
    return {"data_root": args.data_root, "allow_pipe": args.allow_pipe, "trust_config": args.trust_config}

"""`completion`: a script with which a shell completes commands and options."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Mapping

from clt_lightning.core.errors import UserError

_SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `completion`."""
    parser.add_argument(
        "shell",
        choices=_SHELLS,
        help="e.g. clt-lightning completion bash > ~/.local/share/bash-completion/completions/clt-lightning",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the script.

    Raises:
        UserError: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs shtab: pip install 'clt-lightning[completion]' (or shtab)") from error
    print(shtab.complete(whole_parser(), shell=args.shell))


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command and every option."""
    from clt_lightning import compat
    from clt_lightning.cli.main import COMMANDS, TRAINER_COMMANDS

    parser = argparse.ArgumentParser(prog="clt-lightning")
    parser.add_argument("-V", "--version", action="store_true", help="say the version")
    commands = parser.add_subparsers(dest="command")
    options = list(_trainer_options())
    for name, text in TRAINER_COMMANDS.items():
        command = commands.add_parser(name, help=text)
        for option, where in options:
            if (option == "--run") > (name != "fit") or (option == "--sweep") > (name == "fit"):
                continue
            _completes(command.add_argument(option, help=""), where)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        importlib.import_module(module).add_arguments(command)
        for action in compat.options_of(command):
            if action.option_strings[-1] in ("--run", "--output", "--root", "--source", "--transcoder", "--runs_dir"):
                _completes(action, "directory")
            elif action.option_strings[-1] in ("--config", "--ckpt_path"):
                _completes(action, "file")
    return parser


def _trainer_options() -> Iterator[tuple[str, str]]:
    """Options of fit, validate, test and predict, and what their values are: `file`, `directory`, or anything else."""
    from clt_lightning.cli.config_cli import config_keys

    yield "--config", "file"
    yield "--run", "directory"
    yield "--sweep", "file"
    yield "--print_config", ""

    def leaves(table: Mapping[str, object], above: str) -> Iterator[str]:
        for key, value in table.items():
            place = f"{above}.{key}" if above else str(key)
            yield from leaves(value, place) if isinstance(value, dict) else [place]

    for key in leaves(config_keys(), ""):
        last = key.rsplit(".", 1)[-1]
        yield (
            f"--{key}",
            "file" if last == "ckpt_path" else "directory" if last in ("root", "runs_dir", "dirpath") else "",
        )


def _completes(action: argparse.Action, what: str) -> None:
    import shtab

    if what:
        action.complete = {"file": shtab.FILE, "directory": shtab.DIRECTORY}[what]  # type: ignore[attr-defined]

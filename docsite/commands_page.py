"""Every command with its options: read off the parsers."""

from __future__ import annotations

import argparse
import importlib
import re

from clt_lightning import compat
from clt_lightning.cli import help
from clt_lightning.cli.arguments import ArgumentParser
from clt_lightning.cli.main import COMMANDS, TRAINER_COMMANDS
from docsite.words import beginning, text_html

#: What the four commands that read a config take beside its keys
KEYS = {
    "--KEY=VALUE": "any key of a config, such as `--trainer.max_steps=100`: [every key](config.md)",
    "--print_config": "prints what files and options amount to, with all defaults, and ends",
}


def page() -> str:
    """The page, as Markdown."""
    everything = {**TRAINER_COMMANDS, **{name: text for name, (_, text) in COMMANDS.items()}}
    parts = [
        beginning("commands") + "".join(f"| [`{name}`](#{name}) | {text} |\n" for name, text in everything.items())
    ]
    for name, text in TRAINER_COMMANDS.items():
        kind = "fit" if name == "fit" else "other"
        usage = re.sub(r"\n +", "\n", help.USAGE[kind] % {"prog": f"python -m clt_lightning {name}"})
        of_run = {"--run FOLDER": help.RUN["--run"], "--trust_config": help.RUN["--trust_config"]}
        options = {
            **(of_run if kind == "other" else {}),
            "--config FILE": help.CONFIG,
            "--ckpt_path WHICH": help.CKPT[kind],
            **KEYS,
        }
        rows = "".join(f"| `{option}` | {said} |\n" for option, said in options.items())
        parts.append(f"{_head(name, text, usage)}\n| option | |\n|---|---|\n{rows}")
    for name, (module, text) in COMMANDS.items():
        parser = ArgumentParser(prog=f"python -m clt_lightning {name}", description=text, add_help=False)
        importlib.import_module(module).add_arguments(parser)
        parts.append(_command(parser, name, text, 2))
    return "\n".join(parts)


def _head(name: str, text: str, usage: str, level: int = 2) -> str:
    title = f"{'#' * level} {name} {{ #{name.replace(' ', '-')} }}"
    return f"{title}\n\n{text[:1].upper()}{text[1:]}.\n\n```text\n{usage}\n```\n"


def _command(parser: argparse.ArgumentParser, name: str, text: str, level: int) -> str:
    parts = [_head(name, text.rstrip("."), _usage(parser), level)]
    rows = [_row(action) for action in compat.options_of(parser) if action.help != argparse.SUPPRESS]
    words = [a for a in compat.words_of(parser) if a.help != argparse.SUPPRESS]
    rows = [_row(action) for action in words] + rows
    if rows:
        parts.append("| option | |\n|---|---|\n" + "".join(rows))
    for sub, inner in compat.subcommands_of(parser).items():
        parts.append(_command(inner, f"{name} {sub}", (inner.description or "").split(". ")[0], level + 1))
    return "\n".join(parts)


def _usage(parser: argparse.ArgumentParser) -> str:
    return re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()


def _row(action: argparse.Action) -> str:
    takes = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    name = " ".join([*action.option_strings[-1:], str(takes) if action.nargs != 0 else ""]).strip()
    said = action.help or ""
    if "%" in said:
        said %= {**vars(action), "prog": "python -m clt_lightning"}
    plain = action.default in (None, argparse.SUPPRESS, False, [])
    more = "" if plain or "default" in said else f" (default: {action.default})"
    needed = " **Needed.**" if action.required and action.option_strings else ""
    cell = text_html(said).replace("|", "\\|")
    return f"| `{name}` | {cell}{more}{needed} |\n"

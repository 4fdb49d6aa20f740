"""Which command was asked for. Imports nothing heavy: `--help` and commands without a model start in a moment."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import select
import sys
from collections.abc import Sequence

from clt_lightning import __version__
from clt_lightning.cli.shipped import with_shipped_configs
from clt_lightning.core.classes import nearest
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_reason
from clt_lightning.core.terminal import Speaker, first_process, give_way, process_number, speaking_on

#: Commands of LightningCLI, which read a config
TRAINER_COMMANDS = {
    "fit": "train a transcoder",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "codes and embeddings of a split",
}
#: The others: name -> (module with `add_arguments(parser)` and `run(args)`, what it does)
COMMANDS = {
    "shard": ("clt_lightning.data.shard", "make WebDataset tars from the official archives or from folders"),
    "export": (
        "clt_lightning.cli.export",
        "write a run's transcoder as a folder for from_pretrained, or for circuit-tracer or SAELens",
    ),
    "plan": (
        "clt_lightning.cli.plan",
        "what a config costs on paper, a step and in all, and how to divide it over GPUs",
    ),
    "paper-table": ("clt_lightning.cli.paper_table", "what finished runs have measured, beside what was published"),
    "compare": ("clt_lightning.cli.compare", "which features of two or more runs are the same"),
    "studies": ("clt_lightning.cli.studies", "which features several data sets share, and which are one set's own"),
    "report": ("clt_lightning.cli.report", "write pages and figures of an evaluated run, to open in a browser"),
    "completion": (
        "clt_lightning.cli.completion",
        "print a script that completes commands and options with the tab key",
    ),
    "serve": (
        "clt_lightning.cli.serve",
        "a run's pages with the model behind them: own images, moved features, phrases",
    ),
    "steer": ("clt_lightning.cli.steer", "set, scale or move features, and see which classes the model names then"),
    "probe": (
        "clt_lightning.cli.probe",
        "linear read-outs of features and codes, of an image or of each patch; class logits without a text tower",
    ),
    "bench": (
        "clt_lightning.cli.bench",
        "what features, reconstructions and codes are worth, beside controls and an untrained transcoder",
    ),
    "debias": ("clt_lightning.cli.debias", "take a spurious cue out with one edit, beside its controls; erase a class"),
    "attention": (
        "clt_lightning.cli.attention",
        "sparse attention on a run's backbone: train it, and put it in the place of every attention",
    ),
    "graph": ("clt_lightning.cli.graph", "the attribution graph of one image, and whether it predicts interventions"),
}

HELP = """usage: python -m clt_lightning COMMAND [options]        (COMMAND --help explains every option)

commands that read a config (--config FILE, repeatable; later files win):
{trainer}

commands that read files:
{others}

-V says the version; `clt-lightning` is the same as `python -m clt_lightning`.

example: python -m clt_lightning fit --config configs/quickstart.yaml
         python -m clt_lightning test --run runs/quickstart/version_0      (config and weights of a run)
"""


def _help() -> str:
    def rows(entries: dict[str, str]) -> str:
        return "\n".join(f"  {name:<11} {text}" for name, text in entries.items())

    return HELP.format(trainer=rows(TRAINER_COMMANDS), others=rows({k: v[1] for k, v in COMMANDS.items()}))


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake ends in one message on standard error and exit code 2.

    Args:
        args: the words after `python -m clt_lightning`; None takes them from the command line.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        _run(words)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:  # the last net: those who write name the file themselves
        reason = disk_reason(error)
        if reason is None:
            raise
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # no other errors of reading
            told = f"{place or f'a file of `{words[0]}`'} cannot be written: {reason}. Make room, or write elsewhere"
        else:
            told = f"{place or words[0]}: {error.strerror or error}"
        print(f"error: {told}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_help(), end="")
        return
    if words[0] in ("-V", "--version"):
        print(f"clt_lightning {__version__}")
        return
    _show_log()
    words = with_shipped_configs(words)
    if words[0] in TRAINER_COMMANDS and words[1:] in (["-h"], ["--help"]):
        from clt_lightning.cli.ready_help import ready_help

        if (text := ready_help(words[0])) is not None:
            print(text, end="")
            raise SystemExit(0)
    if words[0] in TRAINER_COMMANDS:
        from clt_lightning.cli.early import check_paths

        check_paths(words)
        importlib.import_module("clt_lightning.core.environment")
        from clt_lightning.cli.trainer import run_trainer

        with speaking_on("stdout"):
            run_trainer(words)
    elif words[0] in COMMANDS:
        _run_command(words[0], words[1:])
    else:
        if words[0].startswith("-"):
            raise UserError(f"the command comes first, as in: python -m clt_lightning fit {' '.join(words[:2])}")
        known = [*TRAINER_COMMANDS, *COMMANDS]
        close = nearest(words[0], known, n=1)
        raise UserError(
            f"unknown command {words[0]!r}{f', did you mean {close[0]}?' if close else ''}; there are: "
            f"{', '.join(known)}"
        )


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, as after `... | head`; other pipes break for other reasons."""
    look = select.poll()
    look.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in look.poll(0))


def _show_log() -> None:
    """What our own modules say at level INFO is for the user, from the first process only.

    The others name the samples that they left out, which are theirs alone.
    """
    first = first_process()
    logger = logging.getLogger("clt_lightning")
    if not logger.handlers:
        handler = Speaker()
        handler.setFormatter(logging.Formatter("%(message)s" if first else f"process {process_number()}: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if first else logging.ERROR)
    if not first:
        logging.getLogger("clt_lightning.data.feed.loader").setLevel(logging.WARNING)
        give_way()


def _run_command(name: str, words: list[str]) -> None:
    from clt_lightning.cli.arguments import ArgumentParser

    module_name, text = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = ArgumentParser(prog=f"python -m clt_lightning {name}", description=text)
    ahead = {"words": words} if name == "shard" else {}  # they may name a set of the user's own
    module.add_arguments(parser, **ahead)
    module.run(parser.parse_args(words))

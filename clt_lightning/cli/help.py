"""What `fit --help` and its like say, beside the options' own texts."""

from __future__ import annotations

import argparse
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

WHAT = {
    "fit": "Train a transcoder.",
    "validate": "Evaluate a checkpoint on the validation split.",
    "test": "Evaluate a checkpoint on the test split, with all controls.",
    "predict": "Write codes and embeddings of the test split.",
}
USAGE = {
    "fit": "%(prog)s --config FILE [--config FILE ...] [--KEY=VALUE ...] [--ckpt_path last|FILE]",
    "other": "%(prog)s --run FOLDER [--ckpt_path best|last|FILE] [--KEY=VALUE ...]\n"
    "       %(prog)s --config FILE --ckpt_path FILE [--KEY=VALUE ...]",
}
_MORE = (
    "Every key of a config is an option as well: `trainer: {max_steps: 100}` is --trainer.max_steps=100. Later files "
    "and options win. --print_config shows what they amount to; --data.help CIFAR100 explains the keys of a class."
)
CKPT = {
    "fit": "where to go on: `last` takes the newest whole checkpoint of the run (and starts afresh where there is none "
    "yet), a file takes that one",
    "other": "which weights: `best` takes the run's best checkpoint, `last` its newest, a file that one (default with "
    "--run: last)",
}
#: Options of those that evaluate a run
RUN = {
    "--run": "a run's folder, runs/NAME/version_N: takes its config.yaml and its newest checkpoint; options beside it "
    "win over the config",
    "--trust_config": "let the run's config.yaml and checkpoint name classes beyond clt_lightning, lightning and "
    "torch, and run their code",
}
CONFIG = "a config in YAML; repeatable, later ones win (configs/ holds some, configs/data and others overlays)"
#: The option of fit that trains several
SWEEP = (
    "trains several transcoders on one forward of the backbone, each a run of its own in runs/NAME/MEMBER/version_N: "
    "`grid` in FILE holds lists of values by key, `runs` settings by name (docs/training.md)"
)
#: Titles of sections that do not come from our own docstrings
_TITLES = {
    "trainer": "Lightning's Trainer",
    "data": "where images come from: WebImages, CIFAR100, COCO, ImageNet100, Demo (--data.help NAME explains one)",
}


class _BeforeParsing(argparse.Action):
    """An option that is taken out of the command line before it is parsed; here for the help alone."""

    def __call__(self, parser: Any, *_: Any) -> None:
        raise argparse.ArgumentError(self, "is for validate, test and predict, and given once")


def describe(parser: LightningArgumentParser, command: str) -> None:
    """Gives a command's parser its usage, description, sections and the options that are not in a config."""
    kind = "fit" if command == "fit" else "other"
    parser.usage = (USAGE[kind] % {"prog": f"python -m clt_lightning {command}"}).replace("%", "%%")
    parser.description = f"{WHAT[command]} {_MORE}"
    for action in parser._actions:
        if action.dest == "config":
            action.help = CONFIG
        elif action.dest == "ckpt_path":
            action.help = CKPT[kind]
    if command == "fit":
        parser.add_argument(
            "--sweep",
            action=_BeforeParsing,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            metavar="FILE",
            help=SWEEP,
        )
    else:
        parser.add_argument(
            "--run",
            action=_BeforeParsing,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            metavar="FOLDER",
            help=RUN["--run"],
        )
        parser.add_argument(
            "--trust_config",
            action=_BeforeParsing,
            nargs=0,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            help=RUN["--trust_config"],
        )
    for key, group in (parser.groups or {}).items():
        if key in _TITLES or group.title:
            group.title = f"{key}: {_TITLES.get(key, group.title)}" if key != command else "weights"

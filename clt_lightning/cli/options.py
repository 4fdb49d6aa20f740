"""Options that several commands have: what they are called, what they take, and what is refused of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.paths import expand


def add_output(parser: argparse.ArgumentParser, text: str = "write all numbers there as JSON") -> None:
    """`--output FILE`; `file_option` reads it."""
    parser.add_argument("--output", type=Path, help=text)


def file_option(path: Path | None, name: str = "--output") -> Path | None:
    """The file that an option names, before anything is measured for it.

    Raises:
        UserError: it is a folder, or names a variable that is not set.
    """
    if path is None:
        return None
    found = Path(expand(path, name))
    if os.path.isdir(found):
        raise UserError(f"{name} {found} is a folder: name a file")
    return found


def add_notes(parser: argparse.ArgumentParser, more: str = "") -> None:
    """`--notes FILE`, repeatable."""
    parser.add_argument(
        "--notes",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="stars, names and comments that the pages have exported, shown as the features' names; repeatable" + more,
    )


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Whether numbers are large enough: `check_least(args, train_images=1)` of `--train-images`; None always is.

    Raises:
        UserError: one is not.
    """
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            option = name.replace("_", "-")
            raise UserError(f"--{option} must be at least {smallest}, got {value}")


def refuse_given(args: argparse.Namespace, defaults: Mapping[str, Any], why: str) -> None:
    """Refuses options that would do nothing.

    Args:
        args: what was given.
        defaults: by name, as it is written without its dashes, what stands where the option is not given.
        why: follows the option's name.

    Raises:
        UserError: one was given.
    """
    for name, default in defaults.items():
        if getattr(args, name.replace("-", "_")) != default:
            raise UserError(f"--{name} {why}")


def add_seed(parser: argparse.ArgumentParser | argparse._ArgumentGroup, text: str) -> None:
    """`--seed`, `text` saying of what."""
    parser.add_argument("--seed", type=_seed, default=0, help=f"{text} (default: 0)")


def _seed(text: str) -> int:
    """What every generator takes: numpy's and Lightning's refuse others.

    Raises:
        argparse.ArgumentTypeError: another number, or none.
    """
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {(1 << 32) - 1}, got {text!r}")
    return int(text)


def add_pool(parser: argparse.ArgumentParser, what: str) -> None:
    """`--pool`: how an image's tokens become one vector, `what` in words."""
    parser.add_argument(
        "--pool",
        choices=("cls", "mean", "max"),
        default="mean",
        help=f"how an image's tokens become {what}: [CLS], or mean or max over the patches (default: mean)",
    )


def add_sparse(parser: argparse.ArgumentParser, default: tuple[int, ...], text: str) -> None:
    """`--sparse K,K,...`: how many columns k-sparse probes read."""
    parser.add_argument("--sparse", type=numbers, default=default, metavar="K,K,...", help=text)


def numbers(text: str) -> tuple[int, ...]:
    """How many columns k-sparse probes read, as `1,5,20`.

    Raises:
        argparse.ArgumentTypeError: other words.
    """
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas between, such as 1,5,20, got {text!r}"
        ) from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"a k-sparse probe reads at least one column, got {min(found)}")
    return found

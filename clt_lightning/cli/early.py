"""Wrong paths on the command line, said before torch is loaded, in the words of the modules that read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clt_lightning.cli.layers import FILE_OPTIONS, options_of
from clt_lightning.core.config_file import read_config
from clt_lightning.core.paths import expand
from clt_lightning.runs.folder import find_run


def check_paths(words: Sequence[str]) -> None:
    """Looks whether the config files and the run that a trainer command names are there.

    Args:
        words: the command and its options.

    Raises:
        UserError: one is not.
    """
    for option, value in options_of(words[1:]):
        if option == "--run" and words[0] != "fit":
            find_run(value)
        elif option in FILE_OPTIONS and not value.lstrip().startswith("{") and not _is_there(value, option):
            read_config(value, option)


def _is_there(value: str, option: str) -> bool:
    # no more than that: a pipe can be read once alone
    return Path(expand(value, option)).exists()

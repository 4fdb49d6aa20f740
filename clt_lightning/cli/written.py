"""Whether a run's config, once written, can be read back."""

from __future__ import annotations

import argparse
import re

from jsonargparse import ArgumentParser, Namespace

from clt_lightning.core.errors import UserError


def check_readable(parser: ArgumentParser, config: Namespace) -> None:
    """Writes the config as the run's folder gets it, and reads that again, before hours of work that rely on it.

    Raises:
        UserError: it cannot be written in a form that can be read; the message names the key.
    """
    text = parser.dump(config, skip_none=False)
    lost = re.search(r"^\s*([\w-]+): (Unable to serialize .*)$", text, re.MULTILINE)
    if lost:
        raise UserError(
            f"{lost[1]}: {lost[2]}: config.yaml could not be read back. Give it in the config as "
            "{class_path: ..., init_args: {...}}"
        )
    try:
        again = parser.dump(parser.parse_string(text), skip_none=False)
    except (argparse.ArgumentError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"config.yaml could not be read back: {str(error).splitlines()[0]}") from error
    if again != text:
        different = [a for a, b in zip(text.splitlines(), again.splitlines()) if a != b]
        raise UserError(f"config.yaml would be read back as another config: {(different or ['?'])[0].strip()}")

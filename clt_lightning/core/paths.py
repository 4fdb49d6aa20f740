"""Paths as users write them."""

from __future__ import annotations

import os
import re

from clt_lightning.core.errors import UserError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand(path: str | os.PathLike[str], name: str = "path") -> str:
    """A path with `~` and `$VARIABLES` put in; addresses (`https://`, `s3://`, `pipe:`) are left alone.

    Args:
        path: as it stands in a config or on the command line.
        name: the option it came from, for the message.

    Raises:
        UserError: a variable that is not set, or an unknown user's `~name`.
    """
    text = os.fspath(path)
    if "://" in text or text.startswith("pipe:"):
        return text

    def value(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in os.environ:
            raise UserError(f"{name}={text!r}: the environment variable {variable} is not set")
        return os.environ[variable]

    text = _VARIABLE.sub(value, text)
    if text.startswith("~"):
        whole = os.path.expanduser(text)
        if whole.startswith("~"):
            raise UserError(f"{name}={text!r}: there is no user {text[1:].split('/')[0]!r}; write ./{text} for a file")
        return whole
    return text

"""The one exception for mistakes that the user can mend, and what its messages call a setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class UserError(ValueError):
    """A mistake in a config, a file or a call: the message names the thing and says what to do.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """


_prefix: ContextVar[str] = ContextVar("prefix", default="")


@contextmanager
def within(section: str) -> Iterator[None]:
    """While active, settings are those under a section of a config, such as `model.backbone`."""
    token = _prefix.set(f"{section}.")
    try:
        yield
    finally:
        _prefix.reset(token)


@contextmanager
def about(name: str) -> Iterator[None]:
    """While active, messages begin with the setting that they are about, as the user calls it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{setting(name)}: {error}") from error


def setting(name: str) -> str:
    """What the user calls a setting: `pretrained` in Python, `model.backbone.pretrained` in a config."""
    return f"{_prefix.get()}{name}"

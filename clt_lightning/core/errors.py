"""The one exception for mistakes that the user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in a config, a file or a call: the message names the thing and says what to do.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """

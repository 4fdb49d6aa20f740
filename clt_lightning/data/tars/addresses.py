"""Paths and addresses: which of them lie on this machine, and which run a command."""

from __future__ import annotations

import re

from clt_lightning.core.errors import UserError


def is_local(url: str) -> bool:
    """True for a plain path, False for `http://…`, `pipe:…` and every other address."""
    return not (url.startswith("pipe:") or re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", url))


def is_http(url: str) -> bool:
    """Whether an address is read over HTTP."""
    return url.startswith(("http://", "https://"))


def as_local(path: str) -> str:
    """A path that was found on disk, so written that it is not taken for an address."""
    return path if is_local(path) else f"./{path}"


def check_allowed(url: str, allow_pipe: bool) -> None:
    """Refuses addresses that run a shell command unless the config allows them."""
    if not is_local(url) and not is_http(url) and not allow_pipe:
        raise UserError(
            f"{url!r} runs a shell command on this machine. If you trust it, add --data.init_args.allow_pipe=true (for "
            "fit, allow_pipe in your own config does as well); otherwise give a path or an http(s) address."
        )

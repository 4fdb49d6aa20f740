"""Small text files of a set: in its folder, or at its address."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request

from clt_lightning.core import files
from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.addresses import is_local
from clt_lightning.data.tars.limits import MAX_TEXT_BYTES

_HTTP_TIMEOUT_S = 60


def beside(root: str, name: str) -> str:
    """The path or address of a file in a folder or at an address."""
    return f"{root.rstrip('/')}/{name}"


def read_text(place: str) -> str | None:
    """The text at a path or an http(s) address, or None where there is none.

    Raises:
        UserError: it cannot be read, or is not UTF-8; file and line are named.
    """
    if is_local(place):
        return files.read_text(place) if os.path.lexists(place) else None
    try:
        with urllib.request.urlopen(place, timeout=_HTTP_TIMEOUT_S) as response:
            data = response.read(MAX_TEXT_BYTES + 1)
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):  # S3-like stores answer 403 for what is not there
            return None
        raise UserError(f"{place} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{place} cannot be read: {error}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{place} has more than {MAX_TEXT_BYTES:,} bytes: this is no list of names or counts")
    return files.decode_text(data, place)


def read_entries(place: str, *, gaps: bool = False) -> list[tuple[int, str]] | None:
    """The entries of the list at a path or address, each with the number of its line, or None where there is none.

    Args:
        place: path or address.
        gaps: whether blank lines between entries are allowed and left out.

    Raises:
        UserError: as `read_text`; or a blank line between entries, or a list without any.
    """
    text = read_text(place)
    if text is None:
        return None
    entries = files.numbered_lines(text, place, gaps=gaps)
    if not entries:
        raise UserError(f"{place} is empty: write one entry a line, or remove it")
    return entries


def read_lines(place: str, *, gaps: bool = False) -> list[str] | None:
    """As `read_entries`, without the numbers."""
    entries = read_entries(place, gaps=gaps)
    return None if entries is None else [entry for _, entry in entries]

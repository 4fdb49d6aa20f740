"""Opening a tar: a path, an address, a command."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import IO

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.addresses import check_allowed, is_http

_OPEN_TRIES = 3


def open_stream(url: str, allow_pipe: bool = False) -> IO[bytes]:
    """Opens a path, an http(s) address, or (with leave) an address that WebDataset opens by a shell command.

    Raises:
        UserError: it cannot be opened; the address and the reason are named.
    """
    check_allowed(url, allow_pipe)
    if is_http(url):
        return _open_http(url)
    if url.startswith("pipe:") or "://" in url:
        from webdataset.gopen import gopen

        result: IO[bytes] = gopen(url, "rb")
        return result
    try:
        return open(url, "rb", buffering=1 << 20)
    except OSError as error:
        raise UserError(f"shard {url} cannot be opened: {error.strerror}") from error


def _open_http(url: str) -> IO[bytes]:
    for attempt in range(1, _OPEN_TRIES + 1):
        try:
            result: IO[bytes] = urllib.request.urlopen(url, timeout=60)
            return result
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == _OPEN_TRIES:
                raise UserError(f"shard {url} answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == _OPEN_TRIES:
                raise UserError(f"shard {url} cannot be reached: {error}") from error
        time.sleep(attempt)
    raise AssertionError("unreachable")

"""Who may ask a local server, and for which files: no other site's scripts, no other name, no other folder."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

#: What a report consists of, and what a browser is told that it is
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}
TOKEN = "X-CLT-Token"


class Refused(Exception):  # noqa: N818  (an answer, not an error)
    """A request that is not served.

    Attributes:
        status: of HTTP.
        reason: what the answer says.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Guard:
    """What a request must show.

    A page of another site cannot read answers of this server, but it can send requests to it, and with a name of its
    own that points to 127.0.0.1 it could read them, too (DNS rebinding). So the server answers to its own names only;
    to no page but its own; and what makes it work asks for a secret that only its own page has been told.

    Attributes:
        port: that it listens on.
        token: the secret.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What `Host` may say."""
        names = (f"127.0.0.1:{self.port}", f"localhost:{self.port}")
        return names if self.port != 80 else (*names, "127.0.0.1", "localhost")

    def check(self, headers: Mapping[str, list[str]], method: str, wants_token: bool) -> None:
        """Whether a request may be served.

        Args:
            headers: values by name in lower case.
            method: GET, HEAD or POST.
            wants_token: whether it makes the model work.

        Raises:
            Refused: it may not.
        """
        hosts = headers.get("host", [])
        if len(hosts) != 1:
            raise Refused(400, "a request names its host once")
        if hosts[0].strip().lower() not in self.names:
            raise Refused(421, f"this server is http://{self.names[0]}/ and answers to no other name")
        for origin in headers.get("origin", []):
            if origin not in {f"http://{name}" for name in self.names}:
                raise Refused(403, "this server serves its own pages only")
        site = headers.get("sec-fetch-site", ["none"])
        mode = headers.get("sec-fetch-mode", ["navigate"])
        # a link on another site may lead here; its scripts and pictures may not be ours
        if set(site) - {"same-origin", "none"} and (method != "GET" or wants_token or mode != ["navigate"]):
            raise Refused(403, "this server serves its own pages only")
        if wants_token or method == "POST":
            given = headers.get(TOKEN.lower(), [])
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(), self.token.encode()):
                raise Refused(403, "this page is of an earlier start of the server: load it again")


def words_of(target: str) -> list[str]:
    """The words of a request's path, decoded once.

    Raises:
        Refused: not a path of this server, or one that no file of ours has.
    """
    if not target.startswith("/") or target.startswith("//"):
        raise Refused(400, "not an address of this server")
    path = target.split("?", 1)[0].split("#", 1)[0]
    try:
        text = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(400, "the address is not UTF-8") from None
    if "\\" in text or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise Refused(400, "the address holds letters that no file of ours has")
    words = text[1:].split("/")
    # `..`, `.`, hidden files, empty words; `%2e%2e%2f` is decoded by now, and nothing is decoded twice
    if any(word.startswith(".") or not word for word in words[:-1]) or words[-1].startswith("."):
        raise Refused(404, "no such file")
    return words


def find_file(root: Path, target: str) -> Path:
    """The file of a folder that a request asks for.

    Args:
        root: the folder; nothing outside can be read, through links neither.
        target: the request's path, as it came.

    Raises:
        Refused: there is none, or it is not one of ours.
    """
    words = words_of(target)
    if not words[-1]:
        words[-1] = "index.html"
    try:
        home = root.resolve(strict=True)
        path = home.joinpath(*words).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there; a name that is too long; links in a circle
        raise Refused(404, "no such file") from None
    if not path.is_relative_to(home) or not path.is_file() or path.suffix.lower() not in KINDS:
        raise Refused(404, "no such file")
    return path

"""The server itself: files of a report, and calls that the model answers."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
import socketserver
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from html import unescape
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clt_lightning import __version__
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.server.guard import KINDS, Guard, Refused, find_file, words_of

ADDRESS = "127.0.0.1"
#: Bytes of a dropped file, and of any other question
MOST_UPLOAD, MOST_QUESTION = 32 << 20, 64 << 10
#: Seconds that a browser may take for a request
PATIENCE = 30.0
META = "clt-live"
_BROKEN = "this went wrong; what is known stands where the server was started"

Answer = dict[str, Any] | Iterator[dict[str, Any]]


class Call:
    """A question to the model.

    Attributes:
        query: what stands in the address behind `?`.
        body: what was sent, as it came.
    """

    def __init__(self, query: dict[str, str], body: bytes) -> None:
        self.query, self.body = query, body

    def json(self) -> dict[str, Any]:
        """The body as a table.

        Raises:
            Refused: it is none.
        """
        try:
            content = json.loads(self.body or b"{}")
        except (ValueError, RecursionError):
            raise Refused(400, "the question is not JSON") from None
        if not isinstance(content, dict):
            raise Refused(400, "the question is no table")
        return content


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: LocalServer
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        try:
            called = self.path.split("?", 1)[0].startswith("/api/")
            headers: dict[str, list[str]] = {}
            for name, value in self.headers.items():
                headers.setdefault(name.lower(), []).append(value)
            self.server.guard.check(headers, method, called)
            if called:
                if method != "POST":
                    raise Refused(405, "a question to the model is a POST")
                self._answer(headers)
            elif method == "POST":
                raise Refused(405, "files are only read")
            else:
                self._file(method)
        except Refused as refused:
            self._refuse(refused.status, refused.reason)
        except UserError as error:
            self._refuse(400, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._refuse(500, _BROKEN)

    # -- files -------------------------------------------------------------------------------------------------------
    def _file(self, method: str) -> None:
        made = self.server.made.get("/".join(words_of(self.path)))
        if made is not None:
            data, kind = made(), KINDS[".js"]
        else:
            path = find_file(self.server.root, self.path)
            data, kind = path.read_bytes(), KINDS[path.suffix.lower()]
        policy = "default-src 'none'; style-src 'unsafe-inline'"  # figures that are opened by themselves have styles
        if kind == KINDS[".html"]:
            data, policy = self.server.page(data)
        self._start(200, kind, len(data), policy)
        if method == "GET":
            self.wfile.write(data)

    # -- the model ---------------------------------------------------------------------------------------------------
    def _answer(self, headers: dict[str, list[str]]) -> None:
        address = urlsplit(self.path)
        name = "/".join(words_of(self.path)[1:])
        call = self.server.calls.get(name)
        if call is None:
            raise Refused(404, f"there is no {name}; there are: {', '.join(sorted(self.server.calls))}")
        function, most = call
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        answer = function(Call(query, self._body(headers, most)))
        if isinstance(answer, dict):
            self._json(200, answer)
            return
        # a line of JSON each time that there is news, until the connection ends
        self.close_connection = True
        self._start(200, "application/x-ndjson", None)
        try:
            for line in answer:
                self.wfile.write(_dump(line) + b"\n")
                self.wfile.flush()
        except UserError as error:
            self.wfile.write(_dump({"error": str(error)}) + b"\n")
        except OSError:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self.wfile.write(_dump({"error": _BROKEN}) + b"\n")
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()

    def _body(self, headers: dict[str, list[str]], most: int) -> bytes:
        lengths = headers.get("content-length", [])
        if "transfer-encoding" in headers or len(lengths) != 1:
            raise Refused(411, "a question says once how long it is (Content-Length)")
        if not re.fullmatch(r"[0-9]{1,15}", lengths[0].strip(), re.ASCII):
            raise Refused(400, "Content-Length is no number")
        length = int(lengths[0])
        if length > most:
            raise Refused(413, f"{length:,} bytes are too many: at most {most:,} are taken")
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(400, "the question ended before its length was reached")
        return body

    # -- out ---------------------------------------------------------------------------------------------------------
    def _start(self, status: int, kind: str, length: int | None, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", policy)
        # without these another site's page could load our data as its own scripts or pictures
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()

    def _json(self, status: int, content: dict[str, Any]) -> None:
        data = _dump(content)
        self._start(status, "application/json", len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, reason: str) -> None:
        # what was not read of the request must not be taken for the next one
        self.close_connection = True
        with suppress(OSError):
            self._json(status, {"error": reason})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: broken request lines, headers without end, other methods."""
        self.command = getattr(self, "command", None) or "GET"
        self.request_version = getattr(self, "request_version", None) or "HTTP/1.1"
        self._refuse(int(code), message or self.responses.get(code, ("refused", ""))[0])

    def version_string(self) -> str:
        """What the answers say who they are of."""
        return f"clt_lightning/{__version__}"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for what went wrong."""


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(finite(content), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class LocalServer(socketserver.ThreadingTCPServer):
    """Serves a report's folder to browsers of this machine, on 127.0.0.1 and nowhere else.

    Args:
        port: to listen on; 0 takes a free one.

    Attributes:
        root: the report's folder.
        calls: by name: what answers `POST /api/<name>`, and the most bytes that it takes.
        made: by path: files that are made when they are asked for, in the place of the folder's.

    Raises:
        UserError: the port is taken, or may not be used.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        if not 0 <= port <= 65535:
            raise UserError(f"--port {port}: ports are 1 to 65535, and 0 for any free one")
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"--port {port} is taken, perhaps by another `serve`: name another one, or 0 for any that is free"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM):
                raise UserError(f"--port {port}: this system keeps it for others; take one from 1024 on") from error
            raise
        self.guard = Guard(self.server_address[1])
        self.root = Path()
        self.calls: dict[str, tuple[Callable[[Call], Answer], int]] = {}
        self.made: dict[str, Callable[[], bytes]] = {}

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{ADDRESS}:{self.guard.port}/"

    def page(self, html: bytes) -> tuple[bytes, str]:
        """A page of the report, told that the model is there; and which scripts may run in it."""
        mark = f'<meta name="{META}" content="{self.guard.token}">'
        text = html.decode("utf-8").replace("<head>", f"<head>\n{mark}", 1)
        inline = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        handlers = [unescape(code) for code in re.findall(r'\son[a-z]+="([^"]*)"', text)]
        digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in inline + handlers)
        scripts = " ".join(["'self' 'unsafe-hashes'", *(f"'sha256-{digest}'" for digest in digests)])
        policy = (
            f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data: blob:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return text.encode("utf-8"), policy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to tell of."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc(file=sys.stderr)

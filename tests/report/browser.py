"""A real browser for tests: Chromium over its debugging pipe, without further packages."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# the browser reads commands from file descriptor 3 and answers on 4
_LAUNCH = """
import os, sys
import fcntl
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
LAPTOP, PHONE = (1366, 768, 1.0, False), (390, 844, 2.0, True)


def find() -> str | None:
    """The browser's path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab of a browser of its own.

    Args:
        profile: an empty folder for its files.
        timeout: seconds that anything may take.
    """

    def __init__(self, profile: Path, timeout: float = 60.0) -> None:
        path = find()
        assert path is not None, "no Chromium"
        self.timeout = timeout
        self.events: list[dict[str, Any]] = []
        self._buffer, self._number, self._session = b"", 0, None
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._out, self._in = ours_out, ours_in
        command = [
            sys.executable,
            "-c",
            _LAUNCH,
            str(theirs_in),
            str(theirs_out),
            path,
            *FLAGS,
            f"--user-data-dir={profile}",
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired, RuntimeError):
            self._process.kill()
            self._process.wait(10)
        finally:
            os.close(self._out)
            os.close(self._in)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends one command of the DevTools protocol and waits for its answer; events are kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read(time.monotonic() + self.timeout)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {self.timeout:.0f} s")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser has gone")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        result: dict[str, Any] = json.loads(line)
        return result

    def screen(self, width: int, height: int, scale: float = 1.0, mobile: bool = False, dark: bool = False) -> None:
        """Size and colour scheme of the screen."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def js(self, expression: str) -> Any:
        """The value of an expression (or of the promise that it gives) in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """A click with the mouse in the middle of an element: unlike a script's, it makes an entry in the history."""
        node = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{node}.scrollIntoView({{block: 'center'}})")
        box = self.js(f"{node}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, key: str) -> None:
        """A key of the keyboard."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def wait(self, condition: str) -> None:
        """Until an expression is true in the page."""
        end = time.monotonic() + self.timeout
        while not self._holds(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not become true in {self.timeout:.0f} s; errors: {self.errors()}")
            time.sleep(0.03)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.js(f"Boolean({condition})"))
        except RuntimeError as error:
            if "navigated or closed" not in str(error):
                raise
            return False  # asked between two pages

    def open(self, index: Path | str, route: str = "", page: str = "summary") -> None:
        """Opens a page of the report afresh: from the disk, or from a server's address."""
        address = index if isinstance(index, str) else index.resolve().as_uri()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{address}#/{route}")
        self.wait("performance.timing.loadEventEnd > 0")  # before that, links replace the address in the history
        self.wait(f"document.getElementById('main') && document.getElementById('main').dataset.ready === '{page}'")

    def goto(self, route: str) -> str:
        """Goes on to another page of the open report, without reading it anew; returns what the page calls itself."""
        self.js("delete document.getElementById('main').dataset.ready")
        address = json.dumps(f"#/{route}")
        # the same address once more is no change: the page is asked for by the event
        self.js(f"location.hash === {address} ? dispatchEvent(new Event('hashchange')) : (location.hash = {address})")
        self.wait("document.getElementById('main').dataset.ready")
        return str(self.js("document.querySelector('h1').textContent"))

    def errors(self) -> list[str]:
        """What went wrong in the page so far: console errors, exceptions, files that could not be read."""
        self.js("0")  # what was said before this is here now
        found = []
        for event in self.events:
            p = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(
                    p["exceptionDetails"].get("exception", {}).get("description") or p["exceptionDetails"]["text"]
                )
            elif event.get("method") == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(a.get("description", a.get("value"))) for a in p["args"]))
            elif event.get("method") == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
                found.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")
        return found

    def requests(self) -> list[str]:
        """Every address that the pages asked for."""
        self.js("0")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def picture(self, selector: str) -> Image.Image:
        """What is drawn where an element is."""
        box = self.js(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        clip = {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def screenshot(self, path: Path, full: bool = False) -> None:
        """A picture of the screen, or of the whole page."""
        options: dict[str, Any] = {"format": "png"}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options |= {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1},
            }
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

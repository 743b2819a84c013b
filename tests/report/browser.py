"""Headless Chromium over its debugging pipe: null-terminated JSON on file descriptors 3 and 4, no port and no further package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
MORE = "disable-extensions hide-scrollbars use-angle=swiftshader enable-unsafe-swiftshader remote-debugging-pipe"  # WebGL without a GPU
FLAGS = [f"--{name}" for name in f"{SWITCHES} {MORE}".split()]
ANSWER_SEC = 120.0  # a page may wait that long for a busy machine


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Browser:
    """One page of a Chromium of its own. A context: leaving it ends the browser.

    Args:
        program: path of Chromium.
        width, height: of the page in CSS pixels.
        webgl: offer it.
    """

    def __init__(self, program: str, width: int = 1200, height: int = 900, *, webgl: bool = True) -> None:
        self.events: list[dict[str, Any]] = []
        self.number = 0
        self.rest = b""
        self.session: str | None = None
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        into, self.write_fd = os.pipe()
        self.read_fd, out = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (into, out)]  # above the two numbers that Chromium expects
        os.close(into), os.close(out)

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = [
            program,
            *FLAGS,
            *([] if webgl else ["--disable-3d-apis"]),
            f"--user-data-dir={self.profile}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, close_fds=False, preexec_fn=place)
        for fd in ends:
            os.close(fd)
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.prefer("light")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write_fd, data) :]
        until = time.monotonic() + ANSWER_SEC
        while time.monotonic() < until:
            for found in self._received(until - time.monotonic()):
                if found.get("id") == self.number:
                    assert "error" not in found, f"{method}: {found['error']}"
                    return dict(found["result"])
                self.events.append(found)
        raise TimeoutError(f"Chromium did not answer {method} within {ANSWER_SEC:g} s")

    def _received(self, seconds: float) -> list[dict[str, Any]]:
        """Whole messages that are there, after waiting for the first bytes."""
        if not select.select([self.read_fd], [], [], max(seconds, 0.0))[0]:
            return []
        got = os.read(self.read_fd, 2**20)
        if not got:
            raise EOFError("Chromium has ended")
        *whole, self.rest = (self.rest + got).split(b"\0")
        return [json.loads(part) for part in whole]

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Size of the page; below 500 pixels as a phone."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 500)

    def prefer(self, scheme: str, media: str = "screen") -> None:
        """light or dark, screen or print."""
        self.call("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """Value of an expression in the page; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = ANSWER_SEC) -> None:
        """Wait until an expression of the page is true."""
        until = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"the page did not come to {expression}"
            time.sleep(0.1)

    def screenshot(self, clip: dict[str, float] | None = None) -> bytes:
        """PNG of what is on the screen, or of a part of the page."""
        more = {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True} if clip else {}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"])

    def pdf(self) -> bytes:
        """The page as it would be printed on A4."""
        made = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(made["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and breaches of the policy so far."""
        found = []
        for event in self.events:
            method, data = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(data["exceptionDetails"].get("exception", data["exceptionDetails"])))
            elif method == "Runtime.consoleAPICalled" and data["type"] in ("error", "assert"):
                found.append(str([argument.get("value") for argument in data["args"]]))
            elif method == "Log.entryAdded" and data["entry"]["level"] == "error":
                found.append(f"{data['entry']['text']} {data['entry'].get('url', '')}")
        return found

    def requests(self) -> list[str]:
        """Addresses that the page has asked for so far."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.write_fd)
        os.close(self.read_fd)
        shutil.rmtree(self.profile, ignore_errors=True)

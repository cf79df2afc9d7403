"""Drives headless Chromium by its own protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from ..web.browser import BROWSER, FLAGS

SECONDS = 60


class Page:
    """An open page.

    Attributes:
        problems: what the browser has complained of: errors of scripts, and what the page's policy forbids.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for what it gives."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.recv(timeout=SECONDS))
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if told.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(told["params"]))
            if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.problems.append(told["params"]["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true in the page; gives its value."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.03)
        raise AssertionError(f"never true: {expression}\n{self.evaluate('document.body.innerText')}")

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code, **({"text": "\r"} if key == "Enter" else {})}
        self.send("Input.dispatchKeyEvent", type="keyDown", **named)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)


@contextmanager
def opened(url: str, profile: Path, *flags: str) -> Iterator[Page]:
    """Open an address in a new browser. Skips the test where there is no Chromium."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    command = [BROWSER, *FLAGS, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", url]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_target(profile / "DevToolsActivePort", url), max_size=None, proxy=None) as socket:
            page = Page(socket)
            page.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")
            yield page
    finally:
        browser.kill()
        browser.wait()


def _target(file: Path, url: str) -> str:
    """The address of the page's debugger, once the browser is up."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if file.exists() and (lines := file.read_text().split()):
            targets = httpx.get(f"http://127.0.0.1:{lines[0]}/json", trust_env=False).json()
            found = [target for target in targets if target["type"] == "page" and target["url"].startswith(url)]
            if found:
                return str(found[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("Chromium does not come up")

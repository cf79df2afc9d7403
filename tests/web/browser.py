"""Runs a module in headless Chromium: a server of two folders, and a page that sends back what the module returns.

The module can tell the server to answer no more requests for files: `await fetch("/stop", { method: "POST" })`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from deepzig.web import SERVE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
)
"""WebGPU is in software: the same on every machine."""
SECONDS = 60
PAGE = """<!doctype html><meta charset="utf-8"><title>test</title>
<script type="importmap">
  { "imports": {
    "@huggingface/jinja": "/web/node_modules/@huggingface/jinja/dist/index.js",
    "@huggingface/tokenizers": "/web/node_modules/@huggingface/tokenizers/dist/tokenizers.mjs"
  } }
</script>
<body><script type="module">
  let answer;
  try {
    const module = await import("./test.js");
    answer = { result: await module.default() };
  } catch (error) {
    answer = { error: error.message, stack: error.stack };
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>"""


class _Handler(SimpleHTTPRequestHandler):
    """Files of `root`, which browsers don't keep by themselves; `/web/` is the package."""

    def __init__(self, *args: Any, root: Path, answers: Queue[Any], stopped: threading.Event, **kwargs: Any) -> None:
        self.answers, self.stopped = answers, stopped
        super().__init__(*args, directory=str(root), **kwargs)

    def do_GET(self) -> None:
        if not self.stopped.is_set():  # else the connection ends without an answer
            super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def translate_path(self, path: str) -> str:
        if path.startswith("/web/"):
            return str(SERVE.parents[1] / path.removeprefix("/web/"))
        return super().translate_path(path)

    def do_POST(self) -> None:
        if self.path == "/stop":
            self.stopped.set()
        else:
            self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(root: Path) -> Iterator[tuple[str, Queue[Any]]]:
    """The address of a server of a folder, and what pages send to it."""
    answers: Queue[Any] = Queue()
    handler = partial(_Handler, root=root, answers=answers, stopped=threading.Event())
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def in_browser(root: Path, profile: Path, module: str, seconds: float = SECONDS) -> Any:
    """What the default function of a module returns in Chromium, which the folder `root` is served to.

    Skips the test where there is no Chromium; fails when nothing came after so many seconds.
    """
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    (root / "test.html").write_text(PAGE)
    (root / "test.js").write_text(module)
    with served(root) as (address, answers):
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"{address}/test.html"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            answer = answers.get(timeout=seconds)
        except Empty:
            raise AssertionError("Chromium sent nothing") from None
        finally:
            browser.kill()
            browser.wait()
    assert "result" in answer, answer
    return answer["result"]

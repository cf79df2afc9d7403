"""A module run by headless Chromium with WebGPU in software: it gets files, and what it returns comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
)
SOURCES = Path(__file__).parents[3] / "web" / "src"
SECONDS = 400
PAGE = """<!doctype html><meta charset="utf-8"><title>test</title><script type="module">
  let answer;
  try {
    answer = { result: await (await import("./test.js")).default() };
  } catch (error) {
    answer = { error: `${error.message} ${error.stack}` };
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>"""


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder; `/src/` is ours."""

    def __init__(self, *args: Any, root: Path, answers: Queue[Any], **kwargs: Any) -> None:
        self.answers = answers
        super().__init__(*args, directory=str(root), **kwargs)

    def translate_path(self, path: str) -> str:
        """Where a file is."""
        own = path.startswith("/src/")
        return str(SOURCES / path.removeprefix("/src/")) if own else super().translate_path(path)

    def do_POST(self) -> None:
        """The answer."""
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


def in_chromium(root: Path, profile: Path, module: str) -> Any:
    """What the default function of a module returns, to which the files of `root` are served.

    Skips the test where there is no Chromium.
    """
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    (root / "test.html").write_text(PAGE)
    (root / "test.js").write_text(module)
    answers: Queue[Any] = Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, root=root, answers=answers))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/test.html"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answer = answers.get(timeout=SECONDS)
    except Empty:
        raise AssertionError("Chromium sent nothing") from None
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
        thread.join()
        server.server_close()
    assert "error" not in answer, answer["error"]
    return answer["result"]
